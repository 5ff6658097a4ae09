//! A linear projection: where its weight is, its shape, and what it is for.

use super::memory::WeightBytes;
use crate::adapter::projection::{Role, Slot};
use crate::model::dtype::FloatDtype;
use crate::quant::mxfp4;
use crate::quant::spec::Spec;

/// A linear projection of a layer: one target for an adapter, whatever is stacked in it.
#[derive(Clone, Debug, PartialEq)]
pub struct ProjectionSpec {
    /// Module path behind the layer's number (`self_attn.q_proj`).
    pub path: String,
    /// `[out, in]` of its weight.
    pub shape: [usize; 2],
    /// Whether it adds a bias.
    pub bias: bool,
    /// Whether it stays in the compute dtype whatever is quantized.
    pub dense: bool,
    /// Whether the checkpoint holds it in MXFP4, which it keeps.
    pub mxfp4: bool,
    /// What it is for.
    pub role: Role,
    /// Its place in its layer; given by [`LayerSpec::of`](super::LayerSpec::of).
    pub slot: Slot,
}

impl ProjectionSpec {
    /// A projection without a bias.
    pub fn new(path: String, shape: [usize; 2], role: Role) -> Self {
        Self { path, shape, bias: false, dense: false, mxfp4: false, role, slot: 0 }
    }

    /// Numbers in its weight.
    pub fn elements(&self) -> u64 {
        self.shape[0] as u64 * self.shape[1] as u64
    }

    /// The blocks that it is held in where a recipe quantizes so: those of MXFP4 have one byte for each scale too.
    pub(in crate::model) fn blocks(&self, quantization: Option<Spec>) -> Option<Spec> {
        match self.mxfp4 {
            true => Some(Spec::Nf4 { block_size: mxfp4::BLOCK, double_quant: true }),
            false => quantization.filter(|_| !self.dense),
        }
    }

    /// Bytes of weight and bias, stored as `quantization` says or else in `dtype`.
    pub fn weights(&self, quantization: Option<Spec>, dtype: FloatDtype) -> WeightBytes {
        let (elements, value) = (self.elements(), dtype.bytes() as u64);
        let mut bytes = WeightBytes::default();
        match self.blocks(quantization) {
            Some(Spec::Nf4 { block_size, double_quant }) => {
                let blocks = elements.div_ceil(block_size as u64);
                bytes.packed = elements.div_ceil(2);
                bytes.scales =
                    if double_quant { blocks + 4 * blocks.div_ceil(256) + 1024 } else { 4 * blocks };
            }
            None => bytes.dense = value * elements,
        }
        bytes.dense += if self.bias { value * self.shape[0] as u64 } else { 0 };
        bytes
    }
}
