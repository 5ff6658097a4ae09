//! The order of an epoch, checked by walking all of it.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn source(dataset: u32, units: &[u64], weight: f64) -> Source {
    let rows = units.iter().sum();
    source_with(dataset, units, weight, HeldOut::nothing(rows))
}

fn source_with(dataset: u32, units: &[u64], weight: f64, held_out: HeldOut) -> Source {
    let mut starts = vec![0];
    starts.extend(units.iter().scan(0, |start, rows| {
        *start += rows;
        Some(*start)
    }));
    Source { dataset, units: starts.into(), weight, held_out: Arc::new(held_out) }
}

fn walk(plan: &EpochPlan) -> Vec<RowId> {
    (0..plan.len()).map(|position| plan.at(position).expect("within the epoch")).collect()
}

fn times_seen(plan: &EpochPlan) -> HashMap<RowId, u64> {
    let mut times = HashMap::new();
    for row in walk(plan) {
        *times.entry(row).or_default() += 1;
    }
    times
}

fn any_source() -> impl Strategy<Value = (Vec<u64>, f64, f64)> {
    let units =
        prop_oneof![prop::collection::vec(1_u64..5000, 1..=1), prop::collection::vec(0_u64..60, 1..40),];
    let weight = prop_oneof![Just(1.0), 0.0..3.5];
    let split = prop_oneof![Just(0.0), 0.0..0.9];
    (units, weight, split)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Every kept row comes floor(weight) times or once more, the total is exact, held-out rows never come,
    /// and this for shuffled and unshuffled epochs of any mixture.
    #[test]
    fn an_epoch_is_exact(
        shapes in prop::collection::vec(any_source(), 1..4),
        seed: u64, epoch in 0_u64..4, shuffle: bool,
    ) {
        let sources: Vec<Source> = shapes.iter().enumerate().map(|(dataset, (units, weight, split))| {
            let held_out = HeldOut::new(seed, dataset as u32, units.iter().sum(), *split);
            source_with(dataset as u32, units, *weight, held_out)
        }).collect();
        let plan = EpochPlan::new(&sources, seed, epoch, shuffle).unwrap();
        let times = times_seen(&plan);
        prop_assert_eq!(plan.at(plan.len()), None);
        let mut total = 0;
        for (source, (_, weight, split)) in sources.iter().zip(&shapes) {
            let mut here = 0;
            for row in 0..source.held_out.rows() {
                let seen = times.get(&RowId { dataset: source.dataset, row }).copied().unwrap_or(0);
                if is_held_out(seed, source.dataset, row, *split) {
                    prop_assert_eq!(seen, 0);
                } else {
                    prop_assert!(seen == *weight as u64 || seen == *weight as u64 + 1, "{} {}", seen, weight);
                }
                here += seen;
            }
            let kept = source.held_out.kept();
            let expected = weight.trunc() as u64 * kept + (weight.fract() * kept as f64).round() as u64;
            prop_assert_eq!(here, expected);
            total += here;
        }
        prop_assert_eq!(plan.len(), total);
    }
}

#[test]
fn without_shuffling_rows_come_in_file_order_and_each_epoch_is_alike() {
    let sources = [source(0, &[3, 2], 1.0), source(1, &[4], 1.5)];
    let plan = EpochPlan::new(&sources, 42, 0, false).unwrap();
    let order: Vec<(u32, u64)> = walk(&plan).iter().map(|id| (id.dataset, id.row)).collect();
    let expected = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 1), (1, 3)];
    assert_eq!(order, expected);
    assert_eq!(walk(&plan), walk(&EpochPlan::new(&sources, 7, 3, false).unwrap()));
}

#[test]
fn epochs_and_seeds_differ_and_repeat() {
    let sources = [source(0, &[1000], 1.0)];
    let order = |seed, epoch| walk(&EpochPlan::new(&sources, seed, epoch, true).unwrap());
    assert_eq!(order(1, 0), order(1, 0));
    assert_ne!(order(1, 0), order(1, 1));
    assert_ne!(order(1, 0), order(2, 0));
    // Two epochs draw different rows for a fractional weight.
    let half = [source(0, &[1000], 0.5)];
    let drawn = |epoch| times_seen(&EpochPlan::new(&half, 1, epoch, true).unwrap());
    let (first, second) = (drawn(0), drawn(1));
    let both = first.keys().filter(|row| second.contains_key(row)).count();
    assert!((180..320).contains(&both), "{both} of 500 drawn twice; 250 expected");
}

#[test]
fn a_unit_is_left_for_good() {
    // Rows of a unit lie together: between the first and the last of them, few others.
    let units = [500_u64; 40];
    let plan = EpochPlan::new(&[source(0, &units, 1.0)], 9, 0, true).unwrap();
    let mut recent: Vec<u64> = Vec::new();
    let mut decoded = 0;
    for id in walk(&plan) {
        let unit = id.row / 500;
        if let Some(at) = recent.iter().position(|&held| held == unit) {
            recent.remove(at);
        } else {
            decoded += 1;
        }
        recent.push(unit);
        if recent.len() > 4 {
            recent.remove(0);
        }
    }
    assert_eq!(decoded, 40, "a cache of four units decodes each once");
    assert!(walk(&plan).windows(2).filter(|pair| pair[1].row == pair[0].row + 1).count() < 200);
}

#[test]
fn datasets_are_mixed_evenly() {
    let plan = EpochPlan::new(&[source(0, &[90_000], 1.0), source(1, &[10_000], 1.0)], 3, 0, true).unwrap();
    for part in walk(&plan).chunks(10_000) {
        let second = part.iter().filter(|id| id.dataset == 1).count();
        assert!((900..=1100).contains(&second), "{second} of 10000; 1000 expected");
    }
}

#[test]
fn positions_correlate_with_nothing() {
    let plan = EpochPlan::new(&[source(0, &[20_000], 1.0)], 5, 0, true).unwrap();
    let half = walk(&plan)[..10_000].iter().filter(|id| id.row < 10_000).count();
    assert!((4800..5200).contains(&half), "{half} rows of the first half came first; 5000 expected");
}

#[test]
fn weights_that_are_none() {
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        let error = EpochPlan::new(&[source(2, &[5], weight)], 0, 0, true).unwrap_err();
        assert!(matches!(error, OrderError::Weight { dataset: 2, .. }), "{error}");
    }
    let error = EpochPlan::new(&[source(0, &[5], 1e300)], 0, 0, true).unwrap_err();
    assert!(matches!(error, OrderError::TooLong { .. }));
    assert!(EpochPlan::new(&[source(0, &[5], 0.0)], 0, 0, true).unwrap().is_empty());
    assert!(EpochPlan::new(&[], 0, 0, true).unwrap().is_empty());
}
