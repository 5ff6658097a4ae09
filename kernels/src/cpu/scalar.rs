//! The three compute dtypes and their conversions to and from f32.

use burn_tensor::{DType, Element};
use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::fast::Lanes;

/// Nothing more is asked of a number where no path is written by hand.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) trait Lanes {}
#[cfg(not(target_arch = "x86_64"))]
impl<T> Lanes for T {}

/// An element a kernel reads and writes; arithmetic is always f32.
pub(crate) trait Scalar: Element + bytemuck::Pod + Send + Sync + Lanes {
    /// The burn dtype.
    const DTYPE: DType;
    /// Whether this is bf16.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "bf16 units of x86-64"))]
    const IS_BF16: bool = false;
    /// Whether this is f32, which conversions leave as it is.
    const IS_F32: bool = false;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
    /// The slice itself, where nothing needs converting.
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
    /// The nearest bf16 (ties to even), as bits.
    #[inline(always)]
    fn bf16_bits(self) -> u16 {
        (round_to_bf16(self.to_f32()).to_bits() >> 16) as u16
    }
}

impl Scalar for f32 {
    const DTYPE: DType = DType::F32;
    const IS_F32: bool = true;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
}

impl Scalar for bf16 {
    const DTYPE: DType = DType::BF16;
    const IS_BF16: bool = true;
    #[inline(always)]
    fn bf16_bits(self) -> u16 {
        self.to_bits()
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_bits((round_to_bf16(value).to_bits() >> 16) as u16)
    }
}

impl Scalar for f16 {
    const DTYPE: DType = DType::F16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}

/// The nearest bf16 value (ties to even), kept in f32; NaN stays NaN. Plain integer arithmetic, so it vectorizes.
#[inline(always)]
pub(crate) fn round_to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f32::from_bits(if value.is_nan() { (bits & 0xffff_0000) | 0x0040_0000 } else { rounded })
}

/// `dst = src` in f32.
pub(crate) fn widen<T: Scalar>(src: &[T], dst: &mut [f32]) {
    if let Some(src) = T::as_f32(src) {
        dst.copy_from_slice(src);
    } else {
        widen_each(src, dst);
    }
}

/// `dst = src` rounded to `T`. Both are of one length.
pub(crate) fn narrow<T: Scalar>(src: &[f32], dst: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    if super::fast::available() {
        // SAFETY: asked just before.
        return unsafe { super::fast::store(src, dst, None, None) };
    }
    narrow_each(src, dst);
}

crate::cpu::vectorized! {
    fn widen_each<T: Scalar>(src: &[T], dst: &mut [f32]) {
        for (dst, src) in dst.iter_mut().zip(src) {
            *dst = src.to_f32();
        }
    }

    fn narrow_each<T: Scalar>(src: &[f32], dst: &mut [T]) {
        for (dst, src) in dst.iter_mut().zip(src) {
            *dst = T::from_f32(*src);
        }
    }

    /// Rounds in place to values that `T` can hold.
    pub(crate) fn round_as<T: Scalar>(values: &mut [f32]) {
        for value in values {
            *value = T::from_f32(*value).to_f32();
        }
    }
}

/// Calls `$body` with `$T` set to the element type of `$dtype`.
///
/// # Panics
/// On any dtype but f32, bf16 and f16.
macro_rules! with_float {
    ($dtype:expr, $T:ident => $body:expr) => {{
        let dtype = $dtype;
        assert!(
            matches!(
                dtype,
                ::burn_tensor::DType::F32 | ::burn_tensor::DType::BF16 | ::burn_tensor::DType::F16
            ),
            "kernels compute in f32, bf16 or f16, not {dtype:?}"
        );
        match dtype {
            ::burn_tensor::DType::BF16 => {
                type $T = ::half::bf16;
                $body
            }
            ::burn_tensor::DType::F16 => {
                type $T = ::half::f16;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    }};
}
pub(crate) use with_float;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounding_is_that_of_half() {
        let specials = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-42];
        let sweep = (0..100_000u32).map(|i| f32::from_bits(i.wrapping_mul(42_949)));
        for value in sweep.chain(specials) {
            let expected = bf16::from_f32(value);
            assert_eq!(round_to_bf16(value).to_bits(), expected.to_f32().to_bits(), "{value}");
            assert_eq!(<bf16 as Scalar>::from_f32(value).to_bits(), expected.to_bits(), "{value}");
        }
        assert!(round_to_bf16(f32::NAN).is_nan());
    }
}
