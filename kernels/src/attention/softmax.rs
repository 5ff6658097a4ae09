//! One row of scores at a time: its exponentials and their sum, and the slopes of scores.

use std::ops::Range;

use super::AttentionOptions;
#[cfg(target_arch = "x86_64")]
use crate::cpu::fast;
use crate::cpu::scalar::Scalar;
use crate::cpu::{math, vectorized};

vectorized! {
    pub(super) fn add_to(values: &mut [f32], other: &[f32]) {
        for (value, other) in values.iter_mut().zip(other) {
            *value += other;
        }
    }

    pub(super) fn scale(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }

    pub(super) fn dot<T: Scalar>(a: &[T], b: &[T]) -> f32 {
        let mut lanes = [0.0f32; 16];
        let (a_runs, b_runs) = (a.chunks_exact(16), b.chunks_exact(16));
        let tail = a_runs.remainder().iter().zip(b_runs.remainder());
        let tail: f32 = tail.map(|(a, b)| a.to_f32() * b.to_f32()).sum();
        for (a, b) in a_runs.zip(b_runs) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a.to_f32() * b.to_f32();
            }
        }
        math::join(lanes) + tail
    }

    fn largest(values: &[f32]) -> f32 {
        math::max(values)
    }

    /// Turns values into exp(factor · value − shift); returns their sum.
    fn plain_exponentiate(values: &mut [f32], factor: f32, shift: f32) -> f32 {
        for value in values.iter_mut() {
            *value = math::exp(*value * factor - shift);
        }
        math::sum(values)
    }

    /// Turns scores into cap · tanh(factor · score).
    fn capped(scores: &mut [f32], factor: f32, cap: f32) {
        for score in scores {
            *score = cap * math::tanh(*score * factor);
        }
    }

    /// [`plain_slopes`] under a cap: ds is times 1 − tanh².
    fn capped_slopes(
        scores: &mut [f32],
        slopes: &mut [f32],
        scaling: f32,
        cap: f32,
        log_sum_exp: f32,
        delta: f32,
    ) {
        let factor = scaling / cap;
        for (score, slope) in scores.iter_mut().zip(slopes) {
            let t = math::tanh(*score * factor);
            let p = math::exp(cap * t - log_sum_exp);
            *score = p;
            *slope = p * (*slope - delta) * scaling * (1.0 - t * t);
        }
    }

    /// Turns scores into probabilities p and dp into ds = p (dp − delta) scaling.
    fn plain_slopes(scores: &mut [f32], slopes: &mut [f32], scaling: f32, log_sum_exp: f32, delta: f32) {
        for (score, slope) in scores.iter_mut().zip(slopes) {
            let p = math::exp(*score * scaling - log_sum_exp);
            *score = p;
            *slope = p * (*slope - delta) * scaling;
        }
    }
}

/// Caps scores, if there is a cap; returns what remains to multiply them by.
pub(super) fn bound(scores: &mut [f32], options: &AttentionOptions) -> f32 {
    match options.soft_cap {
        Some(cap) => {
            capped(scores, options.scaling / cap, cap);
            1.0
        }
        None => options.scaling,
    }
}

/// Turns one row's scores into exp(scaling · score − most), 0 where not visible, with the running largest score and
/// sum brought up to date and the output so far scaled to the new largest.
pub(super) fn softmax_step(
    scores: &mut [f32],
    visible: Range<usize>,
    options: &AttentionOptions,
    (most, sum): (&mut f32, &mut f32),
    output: &mut [f32],
) {
    scores[..visible.start].fill(0.0);
    scores[visible.end..].fill(0.0);
    let scores = &mut scores[visible];
    if scores.is_empty() {
        return;
    }
    let scaling = bound(scores, options);
    // A scaling below zero would turn the largest into the smallest: no model has one, and the op asks for none.
    let found = largest(scores) * scaling;
    let new = if found > *most { found } else { *most };
    let correction = math::exp(*most - new);
    if correction != 1.0 {
        scale(output, correction);
    }
    *sum = *sum * correction + exponentiate(scores, scaling, new);
    *most = new;
}

fn exponentiate(values: &mut [f32], factor: f32, shift: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if fast::available() {
        // SAFETY: asked just before.
        return unsafe { fast::exponentiate(values, factor, shift) }.0;
    }
    plain_exponentiate(values, factor, shift)
}

/// Turns one row's scores into probabilities p and its dp into ds = p (dp − delta) scaling (1 − tanh² under a cap); 0 where
/// not visible.
pub(super) fn slopes_of_scores(
    scores: &mut [f32],
    slopes: &mut [f32],
    visible: Range<usize>,
    options: &AttentionOptions,
    (log_sum_exp, delta): (f32, f32),
) {
    for values in [&mut *scores, &mut *slopes] {
        values[..visible.start].fill(0.0);
        values[visible.end..].fill(0.0);
    }
    let (scores, slopes) = (&mut scores[visible.clone()], &mut slopes[visible]);
    let scaling = options.scaling;
    if let Some(cap) = options.soft_cap {
        return capped_slopes(scores, slopes, scaling, cap, log_sum_exp, delta);
    }
    #[cfg(target_arch = "x86_64")]
    if fast::available() {
        // SAFETY: asked just before.
        return unsafe { fast::slopes(scores, slopes, scaling, log_sum_exp, delta) };
    }
    plain_slopes(scores, slopes, scaling, log_sum_exp, delta);
}
