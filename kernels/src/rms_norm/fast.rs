//! The norm's rows with AVX-512 and BF16 by hand: as the plain loops of `cpu`, up to the order of sums.

use std::arch::x86_64::*;

use crate::cpu::fast::Lanes;

/// What a pass over rows of `weight`'s length reads beside them.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub(super) weight: &'a [f32],
    pub(super) epsilon: f32,
    /// Whether normalised values are rounded before they are multiplied by the weight.
    pub(super) rounds_first: bool,
}

/// Calls `body(start, mask)` for every sixteen of `width` lanes.
macro_rules! each_sixteen {
    ($width:expr, |$start:ident, $mask:ident| $body:expr) => {
        for $start in (0..$width).step_by(16) {
            let $mask: __mmask16 = if $width - $start >= 16 { !0 } else { (1 << ($width - $start)) - 1 };
            $body
        }
    };
}

/// y = x r weight (+ onto); `onto` is as long as `x`, or empty.
///
/// # Safety
/// [`available`](crate::cpu::fast::available).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn forward_rows<T: Lanes>(x: &[T], norm: Norm<'_>, onto: &[T], y: &mut [T]) {
    let width = norm.weight.len().max(1);
    assert!(x.len() == y.len() && (onto.is_empty() || onto.len() >= x.len()));
    for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
        // SAFETY: all rows are `width` long, and masks keep to that.
        unsafe {
            let mut sum = _mm512_setzero_ps();
            each_sixteen!(width, |start, mask| {
                let x = T::load(x.as_ptr().add(start), mask);
                sum = _mm512_fmadd_ps(x, x, sum);
            });
            let r = 1.0 / (_mm512_reduce_add_ps(sum) / width as f32 + norm.epsilon).sqrt();
            let r = _mm512_set1_ps(r);
            let onto = (!onto.is_empty()).then(|| onto[row * width..].as_ptr());
            each_sixteen!(width, |start, mask| {
                let mut value = _mm512_mul_ps(T::load(x.as_ptr().add(start), mask), r);
                if norm.rounds_first {
                    value = T::round(value);
                }
                value = _mm512_mul_ps(value, f32::load(norm.weight.as_ptr().add(start), mask));
                if let Some(onto) = onto {
                    value = _mm512_add_ps(value, T::load(onto.add(start), mask));
                }
                T::store(y.as_mut_ptr().add(start), mask, value);
            });
        }
    }
}

/// Turns `dy` into the gradient, plus `residual`, which is as long or empty.
///
/// # Safety
/// As [`forward_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn backward_rows<T: Lanes>(x: &[T], norm: Norm<'_>, dy: &mut [T], residual: &[T]) {
    let width = norm.weight.len().max(1);
    assert!(x.len() == dy.len() && (residual.is_empty() || residual.len() >= x.len()));
    for (row, (x, dy)) in x.chunks_exact(width).zip(dy.chunks_exact_mut(width)).enumerate() {
        // SAFETY: as above.
        unsafe {
            let (mut squares, mut slopes) = (_mm512_setzero_ps(), _mm512_setzero_ps());
            each_sixteen!(width, |start, mask| {
                let x = T::load(x.as_ptr().add(start), mask);
                let weight = f32::load(norm.weight.as_ptr().add(start), mask);
                let g = _mm512_mul_ps(T::load(dy.as_ptr().add(start), mask), weight);
                squares = _mm512_fmadd_ps(x, x, squares);
                slopes = _mm512_fmadd_ps(x, g, slopes);
            });
            let r = 1.0 / (_mm512_reduce_add_ps(squares) / width as f32 + norm.epsilon).sqrt();
            let slope = _mm512_set1_ps(_mm512_reduce_add_ps(slopes) / width as f32 * r * r);
            let r = _mm512_set1_ps(r);
            let residual = (!residual.is_empty()).then(|| residual[row * width..].as_ptr());
            each_sixteen!(width, |start, mask| {
                let x = T::load(x.as_ptr().add(start), mask);
                let weight = f32::load(norm.weight.as_ptr().add(start), mask);
                let place = dy.as_mut_ptr().add(start);
                let g = _mm512_mul_ps(T::load(place, mask), weight);
                let mut value = _mm512_mul_ps(r, _mm512_fnmadd_ps(x, slope, g));
                if let Some(residual) = residual {
                    value = _mm512_add_ps(value, T::load(residual.add(start), mask));
                }
                T::store(place, mask, value);
            });
        }
    }
}
