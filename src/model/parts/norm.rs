//! A norm: where its weight is and how wide it is.

/// An RMS norm with a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Module path, of a norm in a layer behind the layer's number (`input_layernorm`).
    pub path: &'static str,
    /// Its name in GGUF files (`attn_norm`).
    pub gguf: &'static str,
    /// Numbers that are normalized together.
    pub width: usize,
    /// Added to the mean square before its root.
    pub epsilon: f64,
    /// Its place among the norms of its layer; given by [`LayerSpec::of`](super::LayerSpec::of).
    pub place: usize,
}
