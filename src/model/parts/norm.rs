//! A norm: where its weight is, how wide it is, and how it is computed.

use tune_kernels::rms_norm::RmsNorm;

/// An RMS norm with a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Module path, of a norm in a layer behind the layer's number (`input_layernorm`).
    pub path: &'static str,
    /// Its name in GGUF files (`attn_norm`).
    pub gguf: &'static str,
    /// Numbers that are normalized together.
    pub width: usize,
    /// Epsilon, where values are rounded, how the weight enters.
    pub kind: RmsNorm,
    /// Its place among the norms of its layer; given by [`LayerSpec::of`](super::LayerSpec::of).
    pub place: usize,
}
