//! A decoder layer: x + attention(norm(x)), then x + feed_forward(norm(x)).

use burn::tensor::{Int, Tensor};
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::rms_norm::rms_norm;
use tune_kernels::rope::RotaryTable;

use super::attention::Attention;
use super::cache::LayerCache;
use super::feed_forward::FeedForward;
use crate::adapter::projection::{LayerAdapters, Projection};

use super::FrozenProjection;

/// What every layer of a forward pass is given beside the hidden state.
#[derive(Clone, Debug)]
pub struct LayerInputs<B: KernelBackend> {
    /// Cosines and sines by position.
    pub rotary: RotaryTable<B>,
    /// Position of each token in its document, `[tokens]`.
    pub position_ids: Tensor<B, 1, Int>,
    /// Where documents begin and end.
    pub documents: DocumentOffsets,
}

/// Frozen weights of one layer.
#[derive(Clone, Debug)]
pub struct DecoderLayer<B: KernelBackend> {
    /// `[hidden]`.
    pub attention_norm: Tensor<B, 1>,
    /// Self-attention.
    pub attention: Attention<B>,
    /// `[hidden]`.
    pub feed_forward_norm: Tensor<B, 1>,
    /// Feed-forward block.
    pub feed_forward: FeedForward<B>,
    /// Added to the mean square before its root.
    pub rms_norm_epsilon: f64,
}

impl<B: KernelBackend<Frozen = B>> DecoderLayer<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`, on the frozen backend or under autodiff.
    pub fn forward<T: KernelBackend<Frozen = B>>(
        &self,
        x: Tensor<T, 2>,
        adapters: &LayerAdapters<T>,
        inputs: &LayerInputs<B>,
    ) -> Tensor<T, 2> {
        self.forward_cached(x, adapters, inputs, None)
    }

    /// As [`Self::forward`]; with a cache the tokens continue the sequence in it.
    pub fn forward_cached<T: KernelBackend<Frozen = B>>(
        &self,
        x: Tensor<T, 2>,
        adapters: &LayerAdapters<T>,
        inputs: &LayerInputs<B>,
        cache: Option<&mut LayerCache<T>>,
    ) -> Tensor<T, 2> {
        let normed = rms_norm(x.clone(), &self.attention_norm, self.rms_norm_epsilon);
        let x = x + self.attention.forward(normed, adapters, inputs, cache);
        let normed = rms_norm(x.clone(), &self.feed_forward_norm, self.rms_norm_epsilon);
        x + self.feed_forward.forward(normed, adapters)
    }

    /// One of the projections.
    pub fn projection(&self, projection: Projection) -> &FrozenProjection<B> {
        match projection {
            Projection::Query => &self.attention.query,
            Projection::Key => &self.attention.key,
            Projection::Value => &self.attention.value,
            Projection::Output => &self.attention.output,
            Projection::Gate => &self.feed_forward.gate,
            Projection::Up => &self.feed_forward.up,
            Projection::Down => &self.feed_forward.down,
        }
    }
}
