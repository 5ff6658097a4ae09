//! The NF4 quantizer: the rule of the reference, a run of blocks per task.

use super::codebook::{CODEBOOK, MIDPOINTS, dynamic_map};
use super::quantized::{Absmax, NESTED_BLOCK_SIZE, Quantized};
use super::reference::pairwise_sum;
use crate::cpu::parallel;
use crate::cpu::vectorized;

/// Weights per task: large enough to hide the hand-over, small enough to balance.
const TASK: usize = 1 << 16;

/// Quantizes `weights`, `[out, in]` row-major, in NF4 blocks; codes and scales equal bitsandbytes' bit for bit.
///
/// Under `double_quant` the nested codes follow its CUDA rule; its CPU build differs by one code on near-ties. An
/// all-zero block keeps the code of 0. Weights are expected to be finite: a NaN gets code 0, and an infinity turns
/// its block into NaN and infinities on the way back.
///
/// # Panics
/// If `weights` does not hold `out · in` values, or if `block_size` is zero or odd.
pub fn quantize(weights: &[f32], shape: [usize; 2], block_size: usize, double_quant: bool) -> Quantized {
    assert_eq!(weights.len(), shape[0] * shape[1], "NF4 quantization: {shape:?} does not fit the weights");
    assert!(block_size > 0 && block_size.is_multiple_of(2), "NF4 quantization: block size {block_size}");
    let mut absmax = vec![0.0f32; weights.len().div_ceil(block_size)];
    let mut codes = vec![0u8; weights.len().div_ceil(2)];

    let blocks = TASK.div_ceil(block_size);
    let task = blocks * block_size;
    let tasks: Vec<_> =
        weights.chunks(task).zip(codes.chunks_mut(task / 2)).zip(absmax.chunks_mut(blocks)).collect();
    parallel::for_each(tasks, weights.len() * 16, |((weights, codes), absmax)| {
        let blocks = weights.chunks(block_size).zip(codes.chunks_mut(block_size / 2));
        for ((weights, codes), scale) in blocks.zip(absmax) {
            *scale = quantize_block(weights, codes);
        }
    });

    let absmax = if double_quant { quantize_absmax(&absmax) } else { Absmax::F32(absmax) };
    Quantized { shape, block_size, codebook: CODEBOOK, codes, absmax }
}

vectorized! {
    /// Quantizes one block; returns its absmax.
    fn quantize_block(weights: &[f32], codes: &mut [u8]) -> f32 {
        let absmax = weights.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
        let reciprocal = 1.0 / if absmax == 0.0 { 1.0 } else { absmax };
        // Pairs through a small buffer, so that counting runs over whole vectors.
        const RUN: usize = 64;
        let mut counts = [0i32; RUN];
        for (weights, codes) in weights.chunks(RUN).zip(codes.chunks_mut(RUN / 2)) {
            for (count, weight) in counts.iter_mut().zip(weights) {
                let level = weight * reciprocal;
                *count = MIDPOINTS.iter().map(|midpoint| i32::from(level > *midpoint)).sum();
            }
            if weights.len() % 2 == 1 {
                counts[weights.len()] = ZERO_CODE;
            }
            for (code, pair) in codes.iter_mut().zip(counts.chunks_exact(2)) {
                *code = (pair[0] << 4 | pair[1]) as u8;
            }
        }
        absmax
    }
}

/// The code of 0, which pads an odd count.
const ZERO_CODE: i32 = 7;

fn quantize_absmax(absmax: &[f32]) -> Absmax {
    let map = dynamic_map();
    let mut midpoints = [0.0f32; 255];
    for (midpoint, pair) in midpoints.iter_mut().zip(map.windows(2)) {
        *midpoint = (pair[0] + pair[1]) / 2.0;
    }
    let offset = pairwise_sum(absmax) / absmax.len().max(1) as f32;
    let mut codes = vec![0u8; absmax.len()];
    let mut nested_absmax = vec![0.0f32; absmax.len().div_ceil(NESTED_BLOCK_SIZE)];
    let blocks = absmax.chunks(NESTED_BLOCK_SIZE).zip(codes.chunks_mut(NESTED_BLOCK_SIZE));
    for ((absmax, codes), nested) in blocks.zip(&mut nested_absmax) {
        *nested = absmax.iter().fold(0.0f32, |largest, value| largest.max((value - offset).abs()));
        let reciprocal = 1.0 / if *nested == 0.0 { 1.0 } else { *nested };
        for (code, value) in codes.iter_mut().zip(absmax) {
            let level = (value - offset) * reciprocal;
            // At most 255 midpoints lie below: it fits a byte.
            *code = midpoints.partition_point(|midpoint| level > *midpoint) as u8;
        }
    }
    let nested_map = Box::new(map);
    Absmax::Double { codes, nested_absmax, nested_map, offset, nested_block_size: NESTED_BLOCK_SIZE }
}
