//! Which tokens may be drawn and how often; filters and penalty as transformers has them.

use proptest::prelude::*;

use super::*;

fn sampling(temperature: f64, top_p: f64) -> Sampling {
    Sampling { temperature, top_p, seed: 9, ..Sampling::greedy(1, Vec::new()) }
}

/// How often each token is drawn in `draws` places.
fn shares(sampling: &Sampling, logits: &[f32], draws: u64) -> Vec<f64> {
    let mut counts = vec![0_u32; logits.len()];
    for place in 0..draws {
        counts[sampling.pick(logits, place).unwrap() as usize] += 1;
    }
    counts.into_iter().map(|count| f64::from(count) / draws as f64).collect()
}

#[test]
fn greedy_takes_the_first_of_the_highest() {
    let greedy = sampling(0.0, 1.0);
    assert_eq!(greedy.pick(&[1.0, 3.0, 3.0, f32::NEG_INFINITY], 0), Some(1));
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    for bad in [&[][..], &[f32::NAN, 1.0], &[1.0, f32::NAN], &[f32::INFINITY, 1.0], &[f32::NEG_INFINITY]] {
        assert_eq!(sampling(0.0, 1.0).pick(bad, 0), None);
        assert_eq!(sampling(1.0, 0.5).pick(bad, 0), None);
    }
}

#[test]
fn shares_follow_the_softmax() {
    let logits = [0.0, 2.0_f32.ln(), f32::NEG_INFINITY, 5.0_f32.ln()];
    let warm = shares(&sampling(1.0, 1.0), &logits, 20_000);
    for (share, expected) in warm.iter().zip([0.125, 0.25, 0.0, 0.625]) {
        assert!((share - expected).abs() < 0.012, "{share} {expected}");
    }
    // Halving the temperature squares the odds.
    let cool = shares(&sampling(0.5, 1.0), &logits, 20_000);
    for (share, expected) in cool.iter().zip([1.0 / 30.0, 4.0 / 30.0, 0.0, 25.0 / 30.0]) {
        assert!((share - expected).abs() < 0.012, "{share} {expected}");
    }
}

#[test]
fn top_p_keeps_the_fewest_that_are_enough() {
    let logits = [0.0, 2.0_f32.ln(), 5.0_f32.ln()];
    assert_eq!(shares(&sampling(1.0, 0.6), &logits, 500), [0.0, 0.0, 1.0]);
    let two = shares(&sampling(1.0, 0.7), &logits, 20_000);
    assert_eq!(two[0], 0.0);
    assert!((two[1] - 2.0 / 7.0).abs() < 0.012, "{}", two[1]);
}

#[test]
fn draws_depend_on_seed_and_place_alone() {
    let logits: Vec<f32> = (0..50).map(|id| (id % 7) as f32 / 3.0).collect();
    let draw = |seed, place| Sampling { seed, ..sampling(1.0, 1.0) }.pick(&logits, place);
    let first: Vec<_> = (0..40).map(|place| draw(1, place)).collect();
    assert_eq!(first, (0..40).map(|place| draw(1, place)).collect::<Vec<_>>());
    assert_ne!(first, (0..40).map(|place| draw(2, place)).collect::<Vec<_>>());
    assert!((0..1000).all(|place| (0.0..1.0).contains(&sampling(1.0, 1.0).uniform(place))));
}

proptest! {
    #[test]
    fn only_possible_tokens_are_drawn(
        logits in proptest::collection::vec(-50.0_f32..50.0, 1..20),
        temperature in 0.0_f64..3.0,
        top_p in 0.01_f64..=1.0,
        place in any::<u64>(),
    ) {
        let id = sampling(temperature, top_p).pick(&logits, place).unwrap();
        prop_assert!((id as usize) < logits.len());
    }
}

fn golden() -> serde_json::Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/generation/filters.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn floats(value: &serde_json::Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

#[test]
fn filters_leave_what_those_of_transformers_leave() {
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 30);
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap();
        let sampling = Sampling {
            temperature: number("temperature"),
            top_k: case["top_k"].as_u64().unwrap() as usize,
            top_p: number("top_p"),
            min_p: number("min_p"),
            ..Sampling::greedy(1, Vec::new())
        };
        let logits = floats(&golden["rows"][case["row"].as_u64().unwrap() as usize]);
        let (_, highest) = likeliest(&logits).unwrap();
        let mut found = sampling.candidates(&logits, highest);
        found.sort_unstable_by_key(|(id, _)| *id);
        let total: f64 = found.iter().map(|(_, weight)| weight).sum();
        let kept: Vec<u64> = case["kept"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        assert_eq!(found.iter().map(|(id, _)| *id as u64).collect::<Vec<_>>(), kept, "{case}");
        for ((_, weight), share) in found.iter().zip(case["shares"].as_array().unwrap()) {
            let share = share.as_f64().unwrap();
            assert!((weight / total - share).abs() < 1e-6 * share.max(1e-3), "{case}");
        }
    }
}

#[test]
fn the_penalty_is_that_of_transformers() {
    let golden = golden();
    let cases = golden["penalties"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let mut logits = floats(&golden["rows"][case["row"].as_u64().unwrap() as usize]);
        let seen: Vec<u32> = floats(&case["seen"]).into_iter().map(|id| id as u32).collect();
        let penalty = case["penalty"].as_f64().unwrap();
        let sampling = Sampling { repetition_penalty: penalty, ..Sampling::greedy(1, Vec::new()) };
        sampling.penalize(&mut logits, &seen);
        for (found, expected) in logits.iter().zip(floats(&case["logits"])) {
            assert!((found - expected).abs() < 1e-6 * expected.abs().max(1.0), "{found} {expected} {case}");
        }
    }
}

#[test]
fn a_whole_vocabulary_is_sorted_where_few_are_not_enough() {
    // A thousand equals: top-p keeps the first so many of them.
    let logits = vec![0.0; 1000];
    let found = sampling(1.0, 0.75).candidates(&logits, 0.0);
    assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), (0..750).collect::<Vec<_>>());
}

#[test]
fn answers_of_one_seed_are_drawn_independently() {
    let logits = vec![0.0; 64];
    let draw = |answer| {
        let sampling = Sampling { answer, ..sampling(1.0, 1.0) };
        (0..20).map(|place| sampling.pick(&logits, place)).collect::<Vec<_>>()
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
}
