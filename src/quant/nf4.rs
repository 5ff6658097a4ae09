//! Quantizing a dense weight while it is loaded.

use tune_kernels::nf4::{self, Quantized};

use super::spec::Spec;

/// Quantizes a dense weight of shape `[out, in]` as a recipe says.
pub fn quantize(weights: &[f32], shape: [usize; 2], spec: Spec) -> Quantized {
    match spec {
        Spec::Nf4 { block_size, double_quant } => nf4::quantize(weights, shape, block_size, double_quant),
    }
}
