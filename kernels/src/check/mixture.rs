//! What a mixture of experts adds: the router, and linear layers over ranges of rows.

use burn_tensor::DType;

use super::linear::{STORAGES, Storage, frozen_of};
use super::measure::{Deviation, On, random, rounded, tolerance, values};
use crate::KernelBackend;
use crate::grouped_linear::reference::GroupSlices;
use crate::grouped_linear::{
    self, Group, GroupedBackward, grouped_linear, grouped_linear_backward, grouped_linear_down,
};
use crate::linear::reference::{LoraSlices, Sizes};
use crate::linear::{FrozenWeight, Linear, Lora};
use crate::router::{self, Router, Score, route, route_backward};

/// Routers of every kind.
pub const ROUTERS: [Router; 4] = [
    Router { used: 3, score: Score::Softmax, normalised: false, factor: 1.0 },
    Router { used: 2, score: Score::Softmax, normalised: true, factor: 1.0 },
    Router { used: 4, score: Score::Sigmoid, normalised: true, factor: 1.8 },
    Router { used: 1, score: Score::Sigmoid, normalised: false, factor: 2.5 },
];

pub(super) fn all_router<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    ROUTERS.into_iter().flat_map(|router| check_router(on, 5, 9, router)).collect()
}

pub(super) fn all_grouped_linear<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let sizes = |input, out| Sizes { tokens: 0, input, out };
    let cases = [
        (&[2, 0, 5][..], sizes(77, 5), STORAGES[0], 3),
        (&[0, 9, 1, 0], sizes(64, 40), STORAGES[1], 0),
        (&[4, 3], sizes(128, 33), STORAGES[2], 4),
    ];
    let check = |(counts, sizes, storage, rank)| check_grouped_linear(on, counts, sizes, storage, rank);
    cases.into_iter().flat_map(check).collect()
}

/// [`route()`] and its backward.
pub fn check_router<B: KernelBackend>(
    on: On<'_, B>,
    tokens: usize,
    experts: usize,
    router: Router,
) -> Vec<Deviation> {
    let case = format!("[{tokens}, {experts}], {router:?}");
    let logits = on.random(tokens * experts, 1, 3.0);
    let correction = (router.score == Score::Sigmoid).then(|| random(experts, 2, 0.5));
    let chosen = router::reference::choose(&logits, experts, correction.as_deref(), router);
    let weights = router::reference::weigh(&logits, experts, &chosen, router);
    let dweights = random(tokens * router.used, 3, 1.0);
    let slopes = router::reference::backward(&logits, experts, &chosen, router, &dweights);

    let logits = on.tensor::<2>(&logits, [tokens, experts]);
    let correction = correction.map(|correction| on.single::<1>(&correction, [experts]));
    let found = route(&logits, correction.as_ref(), router);
    let dweights = on.single::<2>(&dweights, [tokens, router.used]);
    let dlogits = route_backward(&logits, &found.chosen, router, &dweights);
    let numbers = |experts: &[u32]| experts.iter().map(|expert| *expert as f32).collect::<Vec<_>>();
    vec![
        Deviation::new("experts", &case, &numbers(&found.chosen), &numbers(&chosen), 0.0),
        Deviation::new("weights", &case, &values(&found.weights), &weights, tolerance(DType::F32)),
        Deviation::new("dlogits", &case, &values(&dlogits), &slopes, on.tolerance()),
    ]
}

/// [`grouped_linear()`] over ranges of `counts` rows, two layers each, and its backward onto earlier sums.
pub fn check_grouped_linear<B: KernelBackend>(
    on: On<'_, B>,
    counts: &[usize],
    sizes: Sizes,
    storage: Storage,
    rank: usize,
) -> Vec<Deviation> {
    const SCALING: f32 = 1.25;
    let Sizes { input, out, .. } = sizes;
    let case = format!("{counts:?} rows, {input} x {out}, {storage:?}, rank {rank}");
    let rows: usize = counts.iter().sum();
    let ends = counts.iter().scan(0, |end, count| {
        *end += count;
        Some(*end)
    });
    let ranges: Vec<_> = ends.zip(counts).map(|(end, count)| end - count..end).collect();
    let x = on.random(rows * input, 1, 1.0);
    let dys = [on.random(rows * out, 2, 1.0), on.random(rows * out, 3, 1.0)];
    // The two layers of a group differ by their adapters alone.
    let weights: Vec<(FrozenWeight<B>, Vec<f32>)> =
        (0..counts.len()).map(|group| frozen_of(on, storage, [out, input], 70 + group as u64)).collect();
    let pair = |group: usize, layer: usize| {
        let seed = 10 + 4 * group as u64 + 2 * layer as u64;
        (random(rank * input, seed, 0.3), random(out * rank, seed + 1, 0.3))
    };
    let pairs: Vec<[(Vec<f32>, Vec<f32>); 2]> =
        (0..counts.len()).map(|group| [0, 1].map(|layer| pair(group, layer))).collect();
    // None of rank 0: CUDA copies no tensor without elements.
    let lora = |(a, b): &(Vec<f32>, Vec<f32>)| {
        (rank > 0).then(|| Lora {
            a: on.single::<2>(a, [rank, input]),
            b: on.single::<2>(b, [out, rank]),
            scaling: SCALING,
            dropout: None,
        })
    };
    let loras: Vec<[Option<Lora<B>>; 2]> = pairs.iter().map(|pairs| pairs.each_ref().map(lora)).collect();
    let groups: Vec<Group<'_, B>> = ranges
        .iter()
        .enumerate()
        .map(|(group, rows)| {
            let layer = |layer: usize| Linear {
                weight: &weights[group].0,
                bias: None,
                lora: loras[group][layer].as_ref(),
            };
            Group { rows: rows.clone(), layers: vec![layer(0), layer(1)] }
        })
        .collect();

    let tensor = on.tensor::<2>(&x, [rows, input]);
    let found = grouped_linear(&tensor, &groups);
    let dy = dys.each_ref().map(|dy| on.tensor::<2>(dy, [rows, out]));
    let sums = vec![vec![None, None]; groups.len()];
    let request = |sums| GroupedBackward {
        x: Some(&tensor),
        groups: &groups,
        down: &found.down,
        dy: &dy,
        wants_x: true,
        sums,
    };
    let once = grouped_linear_backward(request(sums));
    let twice = grouped_linear_backward(request(once.adapters.clone()));

    let mask = vec![1.0; rows * input];
    let rounded_pair = |(a, b): &(Vec<f32>, Vec<f32>)| {
        let scaled: Vec<f32> = b.iter().map(|b| b * SCALING).collect();
        let b = rounded(&scaled, on.dtype).iter().map(|b| b / SCALING).collect::<Vec<f32>>();
        (rounded(a, on.dtype), b)
    };
    let rounded: Vec<_> = pairs.iter().map(|pairs| pairs.each_ref().map(rounded_pair)).collect();
    let mut found_all = Vec::new();
    let deviation =
        |part, found: &[f32], expected: &[f32]| Deviation::new(part, &case, found, expected, on.tolerance());
    let mut dx = vec![0.0; rows * input];
    for layer in 0..2 {
        let slices: Vec<GroupSlices<'_>> = (0..groups.len())
            .map(|group| {
                let (a, b) = &rounded[group][layer];
                let mask = &mask[..ranges[group].len() * input];
                let lora = LoraSlices { a, b, rank, scaling: SCALING, mask };
                let lora = (rank > 0).then_some(lora);
                GroupSlices { rows: ranges[group].clone(), weight: &weights[group].1, lora }
            })
            .collect();
        let expected = grouped_linear::reference::forward(&x, &slices, sizes);
        found_all.push(deviation("y", &values(&found.outputs[layer]), &expected));
        let (part, adapters) = grouped_linear::reference::backward(&x, &slices, &dys[layer], sizes);
        dx.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        for (group, [a, b]) in adapters.into_iter().enumerate() {
            let Some(once) = &once.adapters[group][layer] else {
                let is_missing = rank > 0 && !ranges[group].is_empty();
                found_all.push(deviation("sum of no rows", &[], if is_missing { &a } else { &[] }));
                continue;
            };
            found_all.push(deviation("dA", &values(&once.a), &a));
            found_all.push(deviation("dB", &values(&once.b), &b));
            let double = |sum: &[f32]| sum.iter().map(|x| 2.0 * x).collect::<Vec<f32>>();
            if let Some(twice) = &twice.adapters[group][layer] {
                found_all.push(deviation("dA, twice", &values(&twice.a), &double(&a)));
                found_all.push(deviation("dB, twice", &values(&twice.b), &double(&b)));
            }
        }
    }
    found_all.push(deviation("dx", &once.x.as_ref().map(values).unwrap_or_default(), &dx));
    let alone = grouped_linear_down(&tensor, &groups);
    for (alone, down) in alone.iter().zip(&found.down) {
        let [alone, down] =
            [alone, down].map(|down| down.as_ref().map(|down| values(&down.t)).unwrap_or_default());
        found_all.push(Deviation::new("t alone", &case, &alone, &down, 0.0));
    }
    found_all
}
