//! The float dtypes of weights and of the arithmetic on them.

use burn_tensor::DType;
use half::{bf16, f16};

use super::Error;
use super::spec::ComputeDtype;

/// A float dtype of weights and of the arithmetic on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatDtype {
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl FloatDtype {
    /// The name used in recipes and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The nearest number of this dtype.
    pub fn rounded(self, number: f32) -> f32 {
        match self {
            Self::F32 => number,
            Self::Bf16 => bf16::from_f32(number).to_f32(),
            Self::F16 => f16::from_f32(number).to_f32(),
        }
    }

    /// The dtype to compute in: the one that the recipe names; for `auto` the checkpoint's where the device multiplies
    /// it natively, f32 elsewhere.
    ///
    /// `native` answers whether the device multiplies a dtype natively, `supported` whether it can compute in it.
    ///
    /// # Errors
    /// The recipe names a dtype that the device cannot compute in.
    pub fn resolve(
        asked: ComputeDtype,
        checkpoint: Self,
        native: impl Fn(Self) -> bool,
        supported: impl Fn(Self) -> bool,
    ) -> Result<Self, Error> {
        let chosen = match asked {
            ComputeDtype::Auto if native(checkpoint) => checkpoint,
            ComputeDtype::Auto | ComputeDtype::F32 => Self::F32,
            ComputeDtype::Bf16 => Self::Bf16,
            ComputeDtype::F16 => Self::F16,
        };
        match supported(chosen) {
            true => Ok(chosen),
            false => Err(Error::UnsupportedDtype { dtype: chosen.name() }),
        }
    }
}

/// The dtype as the tensor engine names it.
pub fn burn_dtype(dtype: FloatDtype) -> DType {
    match dtype {
        FloatDtype::F32 => DType::F32,
        FloatDtype::Bf16 => DType::BF16,
        FloatDtype::F16 => DType::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_checkpoint_dtype_only_where_it_is_native() {
        let resolve = |asked, native: &[FloatDtype], supported: &[FloatDtype]| {
            FloatDtype::resolve(
                asked,
                FloatDtype::Bf16,
                |dtype| native.contains(&dtype),
                |dtype| supported.contains(&dtype),
            )
        };
        let all = [FloatDtype::F32, FloatDtype::Bf16, FloatDtype::F16];
        assert_eq!(resolve(ComputeDtype::Auto, &[FloatDtype::Bf16], &all).unwrap(), FloatDtype::Bf16);
        assert_eq!(resolve(ComputeDtype::Auto, &[FloatDtype::F16], &all).unwrap(), FloatDtype::F32);
        assert_eq!(resolve(ComputeDtype::F16, &[], &all).unwrap(), FloatDtype::F16);
        assert_eq!(resolve(ComputeDtype::F32, &all, &all).unwrap(), FloatDtype::F32);
        let error = resolve(ComputeDtype::F16, &[], &[FloatDtype::F32]).unwrap_err().to_string();
        assert!(error.contains("f16") && error.contains("compute_dtype"), "{error}");
    }
}
