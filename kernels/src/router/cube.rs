//! The router on a GPU: one unit for each token.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};
use cubecl::prelude::*;

use super::{LEAST, Router, RouterOps, Routes, Score};
use crate::cube::read;
use crate::cube::tensor::{array, dims, empty, empty_like, float, units, wrap};
use crate::fault;

impl<R, F, I, T> RouterOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn route(logits: &Tensor<Self, 2>, correction: Option<&Tensor<Self, 1>>, router: Router) -> Routes<Self> {
        let (logits, correction) = (float(logits), correction.map(float));
        let shape = dims(&logits);
        let [tokens, experts] = [shape[0], shape[1]];
        // Numbers of experts are exact in f32, which is what the host reads.
        let [chosen, weights] = [(); 2].map(|()| empty(&logits, &[tokens, router.used], DType::F32));
        let (cubes, dim) = units(tokens);
        // SAFETY: units from `tokens` on do nothing, and each stays in its rows; without a correction its place is taken
        // by a tensor that is not read.
        unsafe {
            route_kernel::launch_unchecked::<R>(
                &logits.client,
                cubes,
                dim,
                array(&logits),
                array(correction.as_ref().unwrap_or(&weights)),
                array(&chosen),
                array(&weights),
                tokens as u32,
                experts as u32,
                router.used as u32,
                router.factor,
                LEAST,
                correction.is_some(),
                router.score == Score::Softmax,
                router.normalised,
                logits.dtype.into(),
            );
        }
        let numbers = read::later(chosen).wait().unwrap_or_else(|_| {
            fault::check();
            Vec::new()
        });
        let mut chosen: Vec<u32> = numbers.into_iter().map(|expert| expert as u32).collect();
        // Without a reading the device has failed, which the next op reports; until then any expert does.
        chosen.resize(tokens * router.used, 0);
        Routes { chosen, weights: wrap(weights) }
    }

    fn route_backward(
        logits: &Tensor<Self, 2>,
        chosen: &[u32],
        router: Router,
        dweights: &Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        let (logits, dweights) = (float(logits), float(dweights));
        let slopes = empty_like(&logits);
        let shape = dims(&logits);
        let [tokens, experts] = [shape[0], shape[1]];
        if chosen.is_empty() {
            return wrap::<R, F, I, T, 2>(slopes).zeros_like();
        }
        let (cubes, dim) = units(tokens);
        let handle = logits.client.create_from_slice(bytemuck::cast_slice(chosen));
        // SAFETY: as above; the buffer was made of so many words, each the number of an expert.
        unsafe {
            route_backward_kernel::launch_unchecked::<R>(
                &logits.client,
                cubes,
                dim,
                array(&logits),
                ArrayArg::from_raw_parts(handle, chosen.len()),
                array(&dweights),
                array(&slopes),
                tokens as u32,
                experts as u32,
                router.used as u32,
                router.factor,
                LEAST,
                router.score == Score::Softmax,
                router.normalised,
                logits.dtype.into(),
            );
        }
        wrap(slopes)
    }
}

/// The largest logit of a row and the sum of exponentials around it, or what makes a sigmoid of one number.
#[cube]
fn largest_and_sum<F: Float>(logits: &Array<F>, start: u32, experts: u32) -> (f32, f32) {
    let mut largest = f32::cast_from(logits[start as usize]);
    for expert in 1..experts {
        largest = max(largest, f32::cast_from(logits[(start + expert) as usize]));
    }
    let mut sum = 0.0f32;
    for expert in 0..experts {
        sum += (f32::cast_from(logits[(start + expert) as usize]) - largest).exp();
    }
    (largest, sum)
}

#[cube]
fn score(z: f32, largest: f32, sum: f32, #[comptime] softmax: bool) -> f32 {
    if comptime!(softmax) { (z - largest).exp() / sum } else { 1.0f32 / (1.0f32 + (-z).exp()) }
}

#[cube(launch_unchecked)]
fn route_kernel<F: Float>(
    logits: &Array<F>,
    correction: &Array<f32>,
    chosen: &mut Array<f32>,
    weights: &mut Array<f32>,
    tokens: u32,
    experts: u32,
    used: u32,
    factor: f32,
    least: f32,
    #[comptime] corrected: bool,
    #[comptime] softmax: bool,
    #[comptime] normalised: bool,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= tokens as usize {
        terminate!();
    }
    let token = ABSOLUTE_POS as u32;
    let start = token * experts;
    let (largest, sum) = largest_and_sum::<F>(logits, start, experts);
    let mut total = least;
    for place in 0..used {
        // None yet.
        let mut best = experts;
        let mut best_key = 0.0f32;
        for expert in 0..experts {
            let z = f32::cast_from(logits[(start + expert) as usize]);
            let mut key = z;
            if comptime!(!softmax) {
                key = score(z, largest, sum, softmax);
            }
            if comptime!(corrected) {
                key += correction[expert as usize];
            }
            if best == experts || key > best_key {
                let mut is_free = true;
                for earlier in 0..place {
                    if chosen[(token * used + earlier) as usize] == f32::cast_from(expert) {
                        is_free = false;
                    }
                }
                if is_free {
                    best = expert;
                    best_key = key;
                }
            }
        }
        let z = f32::cast_from(logits[(start + best) as usize]);
        let weight = score(z, largest, sum, softmax);
        chosen[(token * used + place) as usize] = f32::cast_from(best);
        weights[(token * used + place) as usize] = weight;
        total += weight;
    }
    let mut scale = factor;
    if comptime!(normalised) {
        scale = factor / total;
    }
    for place in 0..used {
        weights[(token * used + place) as usize] *= scale;
    }
}

#[cube(launch_unchecked)]
fn route_backward_kernel<F: Float>(
    logits: &Array<F>,
    chosen: &Array<u32>,
    dweights: &Array<f32>,
    slopes: &mut Array<F>,
    tokens: u32,
    experts: u32,
    used: u32,
    factor: f32,
    least: f32,
    #[comptime] softmax: bool,
    #[comptime] normalised: bool,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= tokens as usize {
        terminate!();
    }
    let token = ABSOLUTE_POS as u32;
    let start = token * experts;
    let (largest, sum) = largest_and_sum::<F>(logits, start, experts);
    let mut total = least;
    let mut weighed = 0.0f32;
    for place in 0..used {
        let at = (token * used + place) as usize;
        let z = f32::cast_from(logits[(start + chosen[at]) as usize]);
        let p = score(z, largest, sum, softmax);
        total += p;
        weighed += p * dweights[at];
    }
    // dL/dp of a chosen expert is (dw − less) · scale.
    let mut less = 0.0f32;
    let mut scale = factor;
    if comptime!(normalised) {
        less = weighed / total;
        scale = factor / total;
    }
    let mut along = 0.0f32;
    for place in 0..used {
        let at = (token * used + place) as usize;
        let z = f32::cast_from(logits[(start + chosen[at]) as usize]);
        along += score(z, largest, sum, softmax) * (dweights[at] - less) * scale;
    }
    for expert in 0..experts {
        let mut slope = 0.0f32;
        for place in 0..used {
            let at = (token * used + place) as usize;
            if chosen[at] == expert {
                slope = (dweights[at] - less) * scale;
            }
        }
        let p = score(f32::cast_from(logits[(start + expert) as usize]), largest, sum, softmax);
        let mut dz = slope * p * (1.0f32 - p);
        if comptime!(softmax) {
            dz = p * (slope - along);
        }
        slopes[(start + expert) as usize] = F::cast_from(dz);
    }
}
