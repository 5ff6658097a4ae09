//! Scores and sums of values of the decode path with AVX-512 by hand: as the plain loops of `decode`, up to the order of
//! sums.

use std::arch::x86_64::*;
use std::ops::Range;

use super::decode::Rows;
use crate::cpu::fast::Lanes;

/// Keys whose scores are computed together, queries that share a load, and vectors of sixteen values of one block.
const TOGETHER: usize = 4;

/// `queries` `[group, head_dim]` times the keys that they see, to `out` `[group, seen]`. AVX-512 with BF16 is in use.
pub(super) fn scores<T: Lanes>(keys: Rows<'_, T>, queries: &[f32], seen: Range<usize>, out: &mut [f32]) {
    let count = seen.len();
    assert!(queries.len() / keys.head_dim * count == out.len(), "attention: room for the scores");
    assert!(seen.is_empty() || keys.row(seen.end - 1).len() == keys.head_dim, "attention: keys");
    let group = queries.len() / keys.head_dim;
    for query in (0..group).step_by(TOGETHER) {
        // SAFETY: the set in use has these features; the lengths were checked.
        unsafe {
            match group - query {
                1 => scores_of::<T, 1>(keys, queries, query, seen.clone(), out),
                2 => scores_of::<T, 2>(keys, queries, query, seen.clone(), out),
                3 => scores_of::<T, 3>(keys, queries, query, seen.clone(), out),
                _ => scores_of::<T, 4>(keys, queries, query, seen.clone(), out),
            }
        }
    }
}

/// The scores of `QUERIES` queries from `query` on, with four keys at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn scores_of<T: Lanes, const QUERIES: usize>(
    keys: Rows<'_, T>,
    queries: &[f32],
    query: usize,
    seen: Range<usize>,
    out: &mut [f32],
) {
    let (head_dim, count) = (keys.head_dim, seen.len());
    // SAFETY: the caller checked the lengths; masks keep to a row and to what is left of the keys.
    unsafe {
        for number in (0..count).step_by(TOGETHER) {
            let together = TOGETHER.min(count - number);
            let first = keys.values.as_ptr().add((seen.start + number) * keys.stride);
            let mut sums = [[_mm512_setzero_ps(); TOGETHER]; QUERIES];
            for start in (0..head_dim).step_by(16) {
                let mask = mask(head_dim - start);
                let mut rows = [_mm512_setzero_ps(); TOGETHER];
                for (key, row) in rows.iter_mut().enumerate() {
                    *row = T::load(first.add(key.min(together - 1) * keys.stride + start), mask);
                }
                for (other, sums) in sums.iter_mut().enumerate() {
                    let q = f32::load(queries.as_ptr().add((query + other) * head_dim + start), mask);
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        *sum = _mm512_fmadd_ps(row, q, *sum);
                    }
                }
            }
            for (other, sums) in sums.into_iter().enumerate() {
                let out = out.as_mut_ptr().add((query + other) * count + number);
                _mm_mask_storeu_ps(out, ((1_u32 << together) - 1) as __mmask8, four_sums(sums));
            }
        }
    }
}

/// The sum of each register's lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn four_sums([a, b, c, d]: [__m512; TOGETHER]) -> __m128 {
    // Halves of pairs are added until every fourth of a register holds a part of all four sums.
    let low = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let high = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let first = _mm512_shuffle_ps::<0b01_00_01_00>(low, high);
    let second = _mm512_shuffle_ps::<0b11_10_11_10>(low, high);
    let all = _mm512_add_ps(first, second);
    let half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
    _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))
}

/// The lowest sixteen of `left` lanes.
fn mask(left: usize) -> __mmask16 {
    if left >= 16 { !0 } else { (1 << left) - 1 }
}

/// The values that are seen, times their weights `[group, seen]`, to `parts` `[group, 2 + head_dim]`. AVX-512 with BF16 is
/// in use.
pub(super) fn mix<T: Lanes>(values: Rows<'_, T>, weights: &[f32], seen: Range<usize>, parts: &mut [f32]) {
    let (head_dim, count) = (values.head_dim, seen.len());
    let group = parts.len() / (2 + head_dim);
    assert!(weights.len() == group * count && parts.len() == group * (2 + head_dim), "attention: weights");
    assert!(seen.is_empty() || values.row(seen.end - 1).len() == head_dim, "attention: values");
    for start in (0..head_dim).step_by(16 * TOGETHER) {
        for query in (0..group).step_by(TOGETHER) {
            let place = Place { start, query, first: seen.start };
            // SAFETY: the set in use has these features; the lengths were checked.
            unsafe {
                match group - query {
                    1 => mix_of::<T, 1>(values, weights, count, place, parts),
                    2 => mix_of::<T, 2>(values, weights, count, place, parts),
                    3 => mix_of::<T, 3>(values, weights, count, place, parts),
                    _ => mix_of::<T, 4>(values, weights, count, place, parts),
                }
            }
        }
    }
}

/// Where a block of sums begins: value, query, and key.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    query: usize,
    first: usize,
}

/// Up to 64 values of `QUERIES` queries.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn mix_of<T: Lanes, const QUERIES: usize>(
    values: Rows<'_, T>,
    weights: &[f32],
    count: usize,
    Place { start, query, first }: Place,
    parts: &mut [f32],
) {
    // SAFETY: the caller checked the lengths; masks keep to a row.
    unsafe {
        let masks: [__mmask16; TOGETHER] =
            std::array::from_fn(|vector| mask(values.head_dim.saturating_sub(start + 16 * vector)));
        let mut sums = [[_mm512_setzero_ps(); TOGETHER]; QUERIES];
        for key in 0..count {
            let row = values.values.as_ptr().add((first + key) * values.stride).wrapping_add(start);
            let mut vectors = [_mm512_setzero_ps(); TOGETHER];
            for (number, (vector, mask)) in vectors.iter_mut().zip(masks).enumerate() {
                *vector = T::load(row.wrapping_add(16 * number), mask);
            }
            for (number, sums) in sums.iter_mut().enumerate() {
                let weight = _mm512_set1_ps(*weights.as_ptr().add((query + number) * count + key));
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = _mm512_fmadd_ps(weight, vector, *sum);
                }
            }
        }
        for (number, sums) in sums.iter().enumerate() {
            let out =
                parts.as_mut_ptr().add((query + number) * (2 + values.head_dim) + 2).wrapping_add(start);
            for (vector, sum) in sums.iter().enumerate() {
                f32::store(out.wrapping_add(16 * vector), masks[vector], *sum);
            }
        }
    }
}
