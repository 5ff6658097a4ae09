//! The slow oracle of NF4: one weight at a time, straight from the formulas in the module's page.

use super::codebook::{CODEBOOK, MIDPOINTS, dynamic_map};
use super::quantized::{Absmax, NESTED_BLOCK_SIZE, Quantized};

/// Quantizes `weights` (`[out, in]` row-major, finite) into NF4 blocks.
pub fn quantize(weights: &[f32], shape: [usize; 2], block_size: usize, double_quant: bool) -> Quantized {
    let mut absmax = Vec::new();
    let mut codes = vec![0u8; weights.len().div_ceil(2)];
    for (block, values) in weights.chunks(block_size).enumerate() {
        let (scale, levels) = normalize(values);
        absmax.push(scale);
        for (offset, level) in levels.into_iter().enumerate() {
            set(&mut codes, block * block_size + offset, code(level, &MIDPOINTS));
        }
    }
    if !weights.len().is_multiple_of(2) {
        set(&mut codes, weights.len(), code(0.0, &MIDPOINTS));
    }
    let absmax = if double_quant { quantize_absmax(&absmax) } else { Absmax::F32(absmax) };
    Quantized { shape, block_size, codebook: CODEBOOK, codes, absmax }
}

/// The weights back in f32.
pub fn dequantize(quantized: &Quantized) -> Vec<f32> {
    let count = quantized.shape[0] * quantized.shape[1];
    (0..count)
        .map(|i| {
            let byte = quantized.codes[i / 2];
            let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            quantized.codebook[usize::from(code)] * block_scale(&quantized.absmax, i / quantized.block_size)
        })
        .collect()
}

/// Scale of one block, double quantization undone.
pub fn block_scale(absmax: &Absmax, block: usize) -> f32 {
    match absmax {
        Absmax::F32(values) => values[block],
        Absmax::Double { codes, nested_absmax, nested_map, offset, nested_block_size } => {
            nested_map[usize::from(codes[block])] * nested_absmax[block / nested_block_size] + offset
        }
    }
}

fn quantize_absmax(absmax: &[f32]) -> Absmax {
    let map = dynamic_map();
    let midpoints: Vec<f32> = map.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
    let offset = pairwise_sum(absmax) / absmax.len() as f32;
    let centred: Vec<f32> = absmax.iter().map(|value| value - offset).collect();
    let mut codes = Vec::new();
    let mut nested_absmax = Vec::new();
    for values in centred.chunks(NESTED_BLOCK_SIZE) {
        let (scale, levels) = normalize(values);
        nested_absmax.push(scale);
        codes.extend(levels.into_iter().map(|level| code(level, &midpoints)));
    }
    Absmax::Double {
        codes,
        nested_absmax,
        nested_map: Box::new(map),
        offset,
        nested_block_size: NESTED_BLOCK_SIZE,
    }
}

/// Absmax of a block and its values times the reciprocal of it; an all-zero block stays zero.
fn normalize(values: &[f32]) -> (f32, Vec<f32>) {
    let absmax = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let reciprocal = 1.0 / if absmax == 0.0 { 1.0 } else { absmax };
    (absmax, values.iter().map(|value| value * reciprocal).collect())
}

/// Number of midpoints below `level`; ties go down.
fn code(level: f32, midpoints: &[f32]) -> u8 {
    midpoints.iter().map(|midpoint| u8::from(level > *midpoint)).sum()
}

fn set(codes: &mut [u8], index: usize, code: u8) {
    codes[index / 2] |= if index.is_multiple_of(2) { code << 4 } else { code };
}

/// Sum of f32 values in a fixed order, the one numpy uses for a contiguous array.
///
/// Fewer than 8 values: left to right. Up to 128: eight running sums over stride 8, joined pairwise, the tail
/// added one by one. More: split at the multiple of 8 at or below the half, then both sides alike.
pub(super) fn pairwise_sum(values: &[f32]) -> f32 {
    if values.len() < 8 {
        return values.iter().fold(0.0, |total, value| total + value);
    }
    if values.len() <= 128 {
        let (first, rest) = values.split_at(8);
        let mut lanes = [0.0f32; 8];
        lanes.copy_from_slice(first);
        let eights = rest.chunks_exact(8);
        let tail = eights.remainder();
        for eight in eights {
            for (lane, value) in lanes.iter_mut().zip(eight) {
                *lane += value;
            }
        }
        let joined =
            ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
        return tail.iter().fold(joined, |total, value| total + value);
    }
    let half = values.len() / 2;
    let (left, right) = values.split_at(half - half % 8);
    pairwise_sum(left) + pairwise_sum(right)
}
