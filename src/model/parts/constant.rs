//! A frozen tensor that is neither a projection nor a norm.

use super::memory::WeightBytes;
use crate::model::dtype::FloatDtype;

/// A frozen tensor of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ConstantSpec {
    /// Its name behind the layer's number (`linear_attn.A_log`).
    pub name: &'static str,
    /// Its shape in the checkpoint.
    pub shape: Vec<usize>,
    /// Whether it stays in f32 whatever the compute dtype.
    pub single: bool,
    /// Its place among the constants of its layer; given by [`LayerSpec::of`](super::LayerSpec::of).
    pub place: usize,
}

impl ConstantSpec {
    /// Its shape as it is computed with: the first dimension, and all others together.
    pub fn matrix(&self) -> [usize; 2] {
        match self.shape.split_first() {
            Some((rows, rest)) => [*rows, rest.iter().product()],
            None => [1, 1],
        }
    }

    /// The dtype that it is stored in, where hidden states are in `dtype`.
    pub fn dtype(&self, dtype: FloatDtype) -> FloatDtype {
        if self.single { FloatDtype::F32 } else { dtype }
    }

    /// Bytes of it.
    pub fn weights(&self, dtype: FloatDtype) -> WeightBytes {
        let numbers: usize = self.shape.iter().product();
        WeightBytes { dense: (numbers * self.dtype(dtype).bytes()) as u64, ..WeightBytes::default() }
    }
}
