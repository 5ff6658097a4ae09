//! The values of a stored matrix, as a product's right operand reads them.

use half::{bf16, f16};

use super::super::scalar::Scalar;
use crate::nf4::cpu::Nf4Rows;

/// The values of a stored matrix.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    Nf4(Nf4Rows<'a>),
}

impl<'a> Stored<'a> {
    /// Dense values.
    pub(crate) fn of<T: Scalar>(values: &'a [T]) -> Self {
        use burn_tensor::DType;
        match T::DTYPE {
            DType::BF16 => Self::Bf16(bytemuck::cast_slice(values)),
            DType::F16 => Self::F16(bytemuck::cast_slice(values)),
            _ => Self::F32(bytemuck::cast_slice(values)),
        }
    }
}
