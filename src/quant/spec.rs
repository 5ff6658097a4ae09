//! The `[quantization.*]` table of a recipe, as a typed value.

/// How the frozen projections are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spec {
    /// 4-bit NormalFloat.
    Nf4 {
        /// Weights per absmax: a power of two, 64 to 4096.
        block_size: usize,
        /// Quantize the absmax values too.
        double_quant: bool,
    },
}
