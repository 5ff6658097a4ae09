//! Element-wise work with AVX-512 and BF16 by hand: exponentials in twelve instructions, conversions in one.
//!
//! What compilers make of the plain loops costs three times as much, and on these machines the loops are a tenth of
//! a training step. Each function does what the plain loop beside its caller does, to the last bits' rounding.

use std::arch::x86_64::*;
use std::mem::transmute;

use half::{bf16, f16};

use super::isa::InstructionSet;

/// Whether the functions of this file may be called.
#[inline]
pub(crate) fn available() -> bool {
    InstructionSet::current() == InstructionSet::Avx512Bf16
}

/// Numbers that sixteen lanes of f32 are loaded from and stored to.
pub(crate) trait Lanes: Copy {
    /// # Safety
    /// AVX-512 with BF16 is there, and the lanes of `mask` are readable.
    unsafe fn load(from: *const Self, mask: __mmask16) -> __m512;
    /// Rounds to nearest, ties to even.
    ///
    /// # Safety
    /// AVX-512 with BF16 is there, and the lanes of `mask` are writable.
    unsafe fn store(to: *mut Self, mask: __mmask16, values: __m512);
    /// The values that [`Self::store`] would leave.
    ///
    /// # Safety
    /// AVX-512 with BF16 is there.
    unsafe fn round(values: __m512) -> __m512;
}

impl Lanes for f32 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const Self, mask: __mmask16) -> __m512 {
        // SAFETY: the caller answers for the lanes.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(to: *mut Self, mask: __mmask16, values: __m512) {
        // SAFETY: the caller answers for the lanes.
        unsafe { _mm512_mask_storeu_ps(to, mask, values) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(values: __m512) -> __m512 {
        values
    }
}

impl Lanes for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(from: *const Self, mask: __mmask16) -> __m512 {
        // SAFETY: the caller answers for the lanes.
        let words = unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store(to: *mut Self, mask: __mmask16, values: __m512) {
        // SAFETY: the caller answers for the lanes; the types are of one size.
        unsafe {
            let words: __m256i = transmute(_mm512_cvtneps_pbh(values));
            _mm256_mask_storeu_epi16(to.cast(), mask, words);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn round(values: __m512) -> __m512 {
        // SAFETY: the types are of one size.
        let words: __m256i = unsafe { transmute(_mm512_cvtneps_pbh(values)) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)))
    }
}

impl Lanes for f16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(from: *const Self, mask: __mmask16) -> __m512 {
        // SAFETY: the caller answers for the lanes.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn store(to: *mut Self, mask: __mmask16, values: __m512) {
        let words = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
        // SAFETY: the caller answers for the lanes.
        unsafe { _mm256_mask_storeu_epi16(to.cast(), mask, words) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn round(values: __m512) -> __m512 {
        _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values))
    }
}

/// Calls `body(start, mask)` for every sixteen of `length` lanes.
macro_rules! each_sixteen {
    ($length:expr, |$start:ident, $mask:ident| $body:expr) => {
        let length = $length;
        let mut $start = 0;
        while $start < length {
            let left = length - $start;
            let $mask: __mmask16 = if left >= 16 { !0 } else { (1 << left) - 1 };
            $body;
            $start += 16;
        }
    };
}

/// e^x to about one unit in the last place: range reduction by ln 2 in two parts, a polynomial of degree 6 (as in
/// Cephes' `expf`), and the power of two by `vscalefps`, which overflows to infinity and underflows to zero by itself.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp(x: __m512) -> __m512 {
    // Beyond these the power of two no longer fits the reduction.
    let x = _mm512_max_ps(_mm512_set1_ps(-104.0), _mm512_min_ps(_mm512_set1_ps(89.0), x));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
        x,
        _mm512_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm512_set1_ps(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1, 1.0, 1.0] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
    }
    _mm512_scalef_ps(p, n)
}

/// 2^x to about one unit in the last place: the nearest polynomial of degree 5 to 2^r over the fraction r of x, which is
/// computed exactly, and `vscalefps`, which takes the whole part of x by itself.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) fn exp2(x: __m512) -> __m512 {
    let r = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
    let mut p = _mm512_set1_ps(1.877_576_7e-3);
    for coefficient in [8.989_34e-3, 5.582_631_8e-2, 2.401_536_2e-1, 6.931_531e-1, 9.999_999_3e-1] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
    }
    _mm512_scalef_ps(p, x)
}

/// 1 / x to about one unit in the last place, for x not below 1.
#[inline]
#[target_feature(enable = "avx512f")]
fn reciprocal(x: __m512) -> __m512 {
    let estimate = _mm512_rcp14_ps(x);
    let error = _mm512_fnmadd_ps(x, estimate, _mm512_set1_ps(1.0));
    let refined = _mm512_fmadd_ps(estimate, error, estimate);
    // For an infinite x the error is a NaN; the estimate is already zero.
    let infinite = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(x, _mm512_set1_ps(f32::INFINITY));
    _mm512_mask_mov_ps(refined, infinite, estimate)
}

/// 1 / (1 + e^−x).
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sigmoid(x: __m512) -> __m512 {
    // Half the instructions of `exp`; rounding the exponent costs a relative |x| · 2⁻²⁴.
    let exponent = _mm512_mul_ps(_mm512_set1_ps(-std::f32::consts::LOG2_E), x);
    reciprocal(_mm512_add_ps(_mm512_set1_ps(1.0), exp2(exponent)))
}

/// `y = gate · sigmoid(gate) · up`. All of one length.
///
/// # Safety
/// [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn silu_gated<T: Lanes>(gate: &[T], up: &[T], y: &mut [T]) {
    assert!(gate.len() == up.len() && gate.len() == y.len());
    each_sixteen!(gate.len(), |start, mask| {
        // SAFETY: the mask keeps to the slices, which are of one length.
        unsafe {
            let x = T::load(gate.as_ptr().add(start), mask);
            let up = T::load(up.as_ptr().add(start), mask);
            let silu = _mm512_mul_ps(x, sigmoid(x));
            T::store(y.as_mut_ptr().add(start), mask, _mm512_mul_ps(silu, up));
        }
    });
}

/// [`silu_gated`] for GELU; `gelu` holds v's linear and cubic coefficient, and from where on it saturates.
///
/// # Safety
/// [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn gelu_gated<T: Lanes>(gate: &[T], up: &[T], y: &mut [T], gelu: [f32; 3]) {
    assert!(gate.len() == up.len() && gate.len() == y.len());
    each_sixteen!(gate.len(), |start, mask| {
        // SAFETY: the mask keeps to the slices, which are of one length.
        unsafe {
            let x = T::load(gate.as_ptr().add(start), mask);
            let up = T::load(up.as_ptr().add(start), mask);
            let value = _mm512_mul_ps(x, sigmoid(gelu_argument(x, gelu).0));
            T::store(y.as_mut_ptr().add(start), mask, _mm512_mul_ps(value, up));
        }
    });
}

/// GELU's v = x (linear + cubic · x²), and x v′ = x (linear + 3 · cubic · x²), of `x` cut off where v saturates.
#[inline]
#[target_feature(enable = "avx512f")]
fn gelu_argument(x: __m512, [linear, cubic, saturated]: [f32; 3]) -> (__m512, __m512) {
    let x = _mm512_max_ps(_mm512_set1_ps(-saturated), _mm512_min_ps(_mm512_set1_ps(saturated), x));
    let cubic = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(cubic), x), x);
    let linear = _mm512_set1_ps(linear);
    let v = _mm512_mul_ps(x, _mm512_add_ps(linear, cubic));
    (v, _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_set1_ps(3.0), cubic, linear)))
}

/// Turns gate and up into their gradients for `dy`. All of one length.
///
/// # Safety
/// [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn silu_gated_backward<T: Lanes>(gate: &mut [T], up: &mut [T], dy: &[T]) {
    assert!(gate.len() == up.len() && gate.len() == dy.len());
    each_sixteen!(dy.len(), |start, mask| {
        // SAFETY: the mask keeps to the slices, which are of one length.
        unsafe {
            let (gate, up) = (gate.as_mut_ptr().add(start), up.as_mut_ptr().add(start));
            let (x, u, dy) = (T::load(gate, mask), T::load(up, mask), T::load(dy.as_ptr().add(start), mask));
            let (dgate, dup) = gated_slopes(x, x, sigmoid(x), u, dy);
            T::store(gate, mask, dgate);
            T::store(up, mask, dup);
        }
    });
}

/// [`silu_gated_backward`] for GELU, as [`gelu_gated`].
///
/// # Safety
/// [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn gelu_gated_backward<T: Lanes>(gate: &mut [T], up: &mut [T], dy: &[T], gelu: [f32; 3]) {
    assert!(gate.len() == up.len() && gate.len() == dy.len());
    each_sixteen!(dy.len(), |start, mask| {
        // SAFETY: the mask keeps to the slices, which are of one length.
        unsafe {
            let (gate, up) = (gate.as_mut_ptr().add(start), up.as_mut_ptr().add(start));
            let (x, u, dy) = (T::load(gate, mask), T::load(up, mask), T::load(dy.as_ptr().add(start), mask));
            let (v, slope) = gelu_argument(x, gelu);
            let (dgate, dup) = gated_slopes(x, slope, sigmoid(v), u, dy);
            T::store(gate, mask, dgate);
            T::store(up, mask, dup);
        }
    });
}

/// dy · up · s · (1 + slope · (1 − s)), and dy · x · s.
#[inline]
#[target_feature(enable = "avx512f")]
fn gated_slopes(x: __m512, slope: __m512, s: __m512, up: __m512, dy: __m512) -> (__m512, __m512) {
    let one = _mm512_set1_ps(1.0);
    let slope = _mm512_mul_ps(slope, _mm512_sub_ps(one, s));
    let slope = _mm512_mul_ps(s, _mm512_add_ps(one, slope));
    (_mm512_mul_ps(_mm512_mul_ps(dy, up), slope), _mm512_mul_ps(dy, _mm512_mul_ps(x, s)))
}

/// By how much the largest of some logits exceeds its row's reference; rows of `32` logits, one for each reference.
///
/// # Safety
/// [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn largest_excess(logits: &[f32], references: &[f32]) -> f32 {
    assert_eq!(logits.len(), 32 * references.len());
    let mut most = _mm512_set1_ps(f32::NEG_INFINITY);
    for (logits, reference) in logits.chunks_exact(32).zip(references) {
        // SAFETY: 32 numbers are two vectors.
        let (low, high) =
            unsafe { (_mm512_loadu_ps(logits.as_ptr()), _mm512_loadu_ps(logits.as_ptr().add(16))) };
        most = _mm512_max_ps(most, _mm512_sub_ps(_mm512_max_ps(low, high), _mm512_set1_ps(*reference)));
    }
    _mm512_reduce_max_ps(most)
}

/// Turns up to 16 rows of 32 logits into e^(logit − reference), with a reference for each row, and writes their sums.
///
/// # Safety
/// [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn exponentiate_rows(logits: &mut [f32], references: &[f32], sums: &mut [f32; 16]) {
    assert!(logits.len() == 32 * references.len() && references.len() <= 16);
    let factor = _mm512_set1_ps(std::f32::consts::LOG2_E);
    let mut rows = [_mm512_setzero_ps(); 16];
    for ((logits, reference), sum) in logits.chunks_exact_mut(32).zip(references).zip(&mut rows) {
        let reference = _mm512_set1_ps(*reference);
        // SAFETY: 32 numbers are two vectors.
        unsafe {
            let (low, high) = (logits.as_mut_ptr(), logits.as_mut_ptr().add(16));
            let first = exp2(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(low), reference), factor));
            let second = exp2(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(high), reference), factor));
            _mm512_storeu_ps(low, first);
            _mm512_storeu_ps(high, second);
            *sum = _mm512_add_ps(first, second);
        }
    }
    let sums_of_rows = add_across(rows);
    // SAFETY: sixteen numbers are a vector.
    unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), sums_of_rows) };
}

/// The sum of each of sixteen vectors.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn add_across(rows: [__m512; 16]) -> __m512 {
    // Each level adds halves of two vectors, at distances of 1, 2, 4 and 8 lanes.
    let mut a = [_mm512_setzero_ps(); 8];
    for (i, sum) in a.iter_mut().enumerate() {
        let (x, y) = (rows[2 * i], rows[2 * i + 1]);
        *sum = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
    }
    // a[i], of each four lanes: [x0 + x2, y0 + y2, x1 + x3, y1 + y3].
    let mut b = [_mm512_setzero_ps(); 4];
    for (i, sum) in b.iter_mut().enumerate() {
        let (x, y) = (a[2 * i], a[2 * i + 1]);
        let (low, high) =
            (_mm512_shuffle_ps::<0b01_00_01_00>(x, y), _mm512_shuffle_ps::<0b11_10_11_10>(x, y));
        *sum = _mm512_add_ps(low, high);
    }
    // b[i], of each four lanes: rows 4 i to 4 i + 3.
    let mut c = [_mm512_setzero_ps(); 2];
    for (i, sum) in c.iter_mut().enumerate() {
        let (x, y) = (b[2 * i], b[2 * i + 1]);
        let (low, high) =
            (_mm512_shuffle_f32x4::<0b01_00_01_00>(x, y), _mm512_shuffle_f32x4::<0b11_10_11_10>(x, y));
        *sum = _mm512_add_ps(low, high);
    }
    // c[i], quarters: rows 8 i to 8 i + 3 twice, then rows 8 i + 4 to 8 i + 7 twice.
    _mm512_add_ps(
        _mm512_shuffle_f32x4::<0b10_00_10_00>(c[0], c[1]),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(c[0], c[1]),
    )
}

/// Turns values into exp(factor · value − shift). Returns their sum, and the largest exponent.
///
/// # Safety
/// [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn exponentiate(values: &mut [f32], factor: f32, shift: f32) -> (f32, f32) {
    let (factor, shift) = (_mm512_set1_ps(factor), _mm512_set1_ps(shift));
    let mut sum = _mm512_setzero_ps();
    let mut most = _mm512_set1_ps(f32::NEG_INFINITY);
    each_sixteen!(values.len(), |start, mask| {
        // SAFETY: the mask keeps to the slice.
        unsafe {
            let place = values.as_mut_ptr().add(start);
            let x = _mm512_fmsub_ps(factor, f32::load(place, mask), shift);
            most = _mm512_mask_max_ps(most, mask, most, x);
            let e = exp(x);
            sum = _mm512_mask_add_ps(sum, mask, sum, e);
            f32::store(place, mask, e);
        }
    });
    (_mm512_reduce_add_ps(sum), _mm512_reduce_max_ps(most))
}

/// Turns scores into p = exp(scaling · score − log_sum_exp), and slopes dp into p (dp − delta) scaling.
///
/// # Safety
/// [`available`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn slopes(
    scores: &mut [f32],
    slopes: &mut [f32],
    scaling: f32,
    log_sum_exp: f32,
    delta: f32,
) {
    assert_eq!(scores.len(), slopes.len());
    let (scaling, shift, delta) =
        (_mm512_set1_ps(scaling), _mm512_set1_ps(log_sum_exp), _mm512_set1_ps(delta));
    each_sixteen!(scores.len(), |start, mask| {
        // SAFETY: the mask keeps to the slices, which are of one length.
        unsafe {
            let (score, slope) = (scores.as_mut_ptr().add(start), slopes.as_mut_ptr().add(start));
            let p = exp(_mm512_fmsub_ps(scaling, f32::load(score, mask), shift));
            f32::store(score, mask, p);
            let dp = _mm512_sub_ps(f32::load(slope, mask), delta);
            f32::store(slope, mask, _mm512_mul_ps(_mm512_mul_ps(p, scaling), dp));
        }
    });
}

/// Rounds `from` into `to`, after adding what is given. All of one length.
///
/// # Safety
/// [`available`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn store<T: Lanes>(
    from: &[f32],
    to: &mut [T],
    bias: Option<&[f32]>,
    residual: Option<&[T]>,
) {
    assert!(from.len() == to.len() && bias.is_none_or(|bias| bias.len() == to.len()));
    assert!(residual.is_none_or(|residual| residual.len() == to.len()));
    each_sixteen!(from.len(), |start, mask| {
        // SAFETY: the mask keeps to the slices, which are of one length.
        unsafe {
            let mut value = f32::load(from.as_ptr().add(start), mask);
            if let Some(bias) = bias {
                value = _mm512_add_ps(value, f32::load(bias.as_ptr().add(start), mask));
            }
            if let Some(residual) = residual {
                value = _mm512_add_ps(value, T::load(residual.as_ptr().add(start), mask));
            }
            T::store(to.as_mut_ptr().add(start), mask, value);
        }
    });
}

/// [`store`] for rows of 16 or 32 values, `width`, one behind the other, into rows `stride` apart. `residual` is as `out`.
///
/// # Safety
/// [`available`], and `out` and `residual` take `width` values at the start of each of the rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn store_rows<T: Lanes>(
    from: &[f32],
    width: usize,
    out: *mut T,
    stride: usize,
    bias: Option<&[f32]>,
    residual: Option<*const T>,
) {
    assert!((width == 16 || width == 32) && bias.is_none_or(|bias| bias.len() == width));
    for start in (0..width).step_by(16) {
        // SAFETY: the vectors are within `width` values; the caller answers for the rows.
        unsafe {
            let bias = match bias {
                Some(bias) => _mm512_loadu_ps(bias.as_ptr().add(start)),
                None => _mm512_setzero_ps(),
            };
            for (row, values) in from.chunks_exact(width).enumerate() {
                let place = row * stride + start;
                let mut value = _mm512_add_ps(_mm512_loadu_ps(values.as_ptr().add(start)), bias);
                if let Some(residual) = residual {
                    value = _mm512_add_ps(value, T::load(residual.add(place), !0));
                }
                T::store(out.add(place), !0, value);
            }
        }
    }
}
