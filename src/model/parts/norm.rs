//! A norm: where its weight is, how wide it is, and how it is computed.

use tune_kernels::rms_norm::{NormWeight, RmsNorm};

/// A norm with a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Module path, of a norm in a layer behind the layer's number (`input_layernorm`).
    pub path: &'static str,
    /// Its name in GGUF files (`attn_norm`).
    pub gguf: &'static str,
    /// Numbers that are normalized together.
    pub width: usize,
    /// What is computed.
    pub kind: NormKind,
    /// Its place among the norms of its layer; given by [`LayerSpec::of`](super::LayerSpec::of).
    pub place: usize,
}

/// What a norm computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// Numbers over their root mean square.
    Rms(RmsNorm),
    /// Numbers less their mean, over their standard deviation.
    Layer {
        /// Added to the variance before its root.
        epsilon: f64,
        /// Whether it adds a bias.
        bias: bool,
    },
}

impl NormKind {
    /// What is added before the root is taken.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::Rms(norm) => norm.epsilon,
            Self::Layer { epsilon, .. } => epsilon,
        }
    }

    /// The norm, where it subtracts no mean.
    pub fn rms(self) -> Option<RmsNorm> {
        match self {
            Self::Rms(norm) => Some(norm),
            Self::Layer { .. } => None,
        }
    }

    /// Whether it multiplies by 1 + w.
    pub fn is_one_plus(self) -> bool {
        self.rms().is_some_and(|norm| norm.weight == NormWeight::OnePlus)
    }

    /// Whether it adds a bias.
    pub fn has_bias(self) -> bool {
        matches!(self, Self::Layer { bias: true, .. })
    }
}

impl NormSpec {
    /// Numbers in its weight and bias.
    pub fn elements(&self) -> usize {
        if self.kind.has_bias() { 2 * self.width } else { self.width }
    }
}
