//! The router on the CPU, a run of tokens per task.

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::{LEAST, Router, RouterOps, Routes, Score};
use crate::cpu::scalar::{narrow, widen, with_float};
use crate::cpu::{parallel, pool, tensor};

impl RouterOps for Flex {
    fn route(logits: &Tensor<Self, 2>, correction: Option<&Tensor<Self, 1>>, router: Router) -> Routes<Self> {
        let [tokens, experts] = logits.dims();
        let logits = tensor::primitive(logits.clone());
        let correction = correction.map(|correction| tensor::primitive(correction.clone()));
        let correction = correction.as_ref().map(|correction| correction.storage::<f32>());
        let mut chosen = vec![0; tokens * router.used];
        let mut weights = pool::take::<f32>(tokens * router.used);
        with_float!(logits.dtype(), T => {
            let rows = parallel::rows_per_task(experts);
            let logits = logits.storage::<T>().chunks((rows * experts).max(1));
            let used = (rows * router.used).max(1);
            let tasks = logits.zip(chosen.chunks_mut(used)).zip(weights.chunks_mut(used)).collect();
            parallel::for_each(tasks, 8 * tokens * experts, |((logits, chosen), weights)| {
                let mut scores = pool::take::<f32>(experts);
                let used = router.used.max(1);
                let tokens = logits.chunks(experts).zip(chosen.chunks_mut(used)).zip(weights.chunks_mut(used));
                for ((logits, chosen), weights) in tokens {
                    widen(logits, &mut scores);
                    if router.score == Score::Softmax {
                        choose(&scores, correction, chosen);
                        score(&mut scores, router.score);
                    } else {
                        score(&mut scores, router.score);
                        choose(&scores, correction, chosen);
                    }
                    weigh(&scores, chosen, router, weights);
                }
            });
        });
        Routes { chosen, weights: tensor::from_buffer(weights, [tokens, router.used]) }
    }

    fn route_backward(
        logits: &Tensor<Self, 2>,
        chosen: &[u32],
        router: Router,
        dweights: &Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        let [tokens, experts] = logits.dims();
        let logits = tensor::primitive(logits.clone());
        let dweights = tensor::primitive(dweights.clone());
        with_float!(logits.dtype(), T => {
            let mut slopes = pool::take::<T>(tokens * experts);
            let rows = parallel::rows_per_task(experts);
            let (row, used) = ((rows * experts).max(1), (rows * router.used).max(1));
            let tasks = logits.storage::<T>().chunks(row).zip(slopes.chunks_mut(row));
            let tasks = tasks.zip(chosen.chunks(used).zip(dweights.storage::<f32>().chunks(used))).collect();
            parallel::for_each(tasks, 8 * tokens * experts, |((logits, slopes), (chosen, dweights))| {
                let mut wide = pool::take::<f32>(experts);
                let used = router.used.max(1);
                let tokens = logits.chunks(experts).zip(slopes.chunks_mut(experts));
                for ((logits, slopes), (chosen, dweights)) in
                    tokens.zip(chosen.chunks(used).zip(dweights.chunks(used)))
                {
                    widen(logits, &mut wide);
                    score(&mut wide, router.score);
                    slope(&mut wide, chosen, router, dweights);
                    narrow(&wide, slopes);
                }
            });
            tensor::from_buffer(slopes, [tokens, experts])
        })
    }
}

/// p of a token's logits, in their place.
fn score(values: &mut [f32], score: Score) {
    match score {
        Score::Sigmoid => values.iter_mut().for_each(|z| *z = 1.0 / (1.0 + (-*z).exp())),
        Score::Softmax => {
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            values.iter_mut().for_each(|z| *z = (*z - largest).exp());
            let sum: f32 = values.iter().sum();
            values.iter_mut().for_each(|p| *p /= sum);
        }
    }
}

/// The experts of a token, the best first. What is no number is never better than another.
fn choose(keys: &[f32], correction: Option<&[f32]>, chosen: &mut [u32]) {
    for place in 0..chosen.len() {
        let mut best: Option<(usize, f32)> = None;
        for (expert, key) in keys.iter().enumerate() {
            let key = key + correction.map_or(0.0, |correction| correction[expert]);
            let is_better = best.is_none_or(|(_, best)| key > best);
            if is_better && !chosen[..place].contains(&(expert as u32)) {
                best = Some((expert, key));
            }
        }
        chosen[place] = best.map_or(0, |(expert, _)| expert as u32);
    }
}

fn weigh(scores: &[f32], chosen: &[u32], router: Router, weights: &mut [f32]) {
    let mut sum = LEAST;
    for (weight, expert) in weights.iter_mut().zip(chosen) {
        *weight = scores[*expert as usize];
        sum += *weight;
    }
    let factor = if router.normalised { router.factor / sum } else { router.factor };
    weights.iter_mut().for_each(|weight| *weight *= factor);
}

/// dL/dz of a token, in place of its p.
fn slope(scores: &mut [f32], chosen: &[u32], router: Router, dweights: &[f32]) {
    let picked = || chosen.iter().map(|expert| scores[*expert as usize]);
    let sum = picked().sum::<f32>() + LEAST;
    let along: f32 = picked().zip(dweights).map(|(p, dw)| p * dw).sum();
    // dL/dp of the chosen one at `place`.
    let slope = |place: usize| match router.normalised {
        true => router.factor * (dweights[place] - along / sum) / sum,
        false => router.factor * dweights[place],
    };
    let along: f32 = picked().enumerate().map(|(place, p)| p * slope(place)).sum();
    let slopes: Vec<(usize, f32)> =
        chosen.iter().enumerate().map(|(place, expert)| (*expert as usize, slope(place))).collect();
    match router.score {
        Score::Softmax => {
            let before: Vec<f32> = slopes.iter().map(|(expert, _)| scores[*expert]).collect();
            scores.iter_mut().for_each(|p| *p *= -along);
            for ((expert, slope), p) in slopes.into_iter().zip(before) {
                scores[expert] = p * (slope - along);
            }
        }
        Score::Sigmoid => {
            let before: Vec<f32> = slopes.iter().map(|(expert, _)| scores[*expert]).collect();
            scores.fill(0.0);
            for ((expert, slope), p) in slopes.into_iter().zip(before) {
                scores[expert] = slope * p * (1.0 - p);
            }
        }
    }
}
