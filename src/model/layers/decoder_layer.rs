//! A decoder layer: x + attention(norm(x)), then x + feed_forward(norm(x)).

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::rms_norm::{rms_norm, rms_norm_backward};
use tune_kernels::rope::{Positions, RotaryTable};

use super::FrozenProjection;
use super::attention::{Attention, AttentionTape, Upstream};
use super::cache::LayerCache;
use super::feed_forward::{FeedForward, FeedForwardTape};
use crate::adapter::projection::{LayerAdapters, LayerGradients, Projection};

/// What every layer of a forward pass is given beside the hidden state.
#[derive(Clone, Debug)]
pub struct LayerInputs<B: KernelBackend> {
    /// Cosines and sines by position.
    pub rotary: RotaryTable<B>,
    /// Of each token in its document.
    pub positions: Positions<B>,
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

/// What a layer's forward pass keeps for its backward pass. Norms and activations are computed again: they cost little
/// beside the matrix products, and half the memory.
#[derive(Clone, Debug)]
pub struct LayerTape<B: KernelBackend> {
    /// The layer's input, `[tokens, hidden]`.
    x: Tensor<B, 2>,
    attention: AttentionTape<B>,
    /// The hidden state between the blocks.
    middle: Tensor<B, 2>,
    feed_forward: FeedForwardTape<B>,
}

impl<B: KernelBackend> DecoderLayer<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`, with what a backward pass needs.
    pub fn forward_with_tape(
        &self,
        x: Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        inputs: &LayerInputs<B>,
    ) -> (Tensor<B, 2>, LayerTape<B>) {
        let normed = rms_norm(&x, &self.attention_norm, self.rms_norm_epsilon);
        let (middle, attention) = self.attention.forward(&normed, adapters, inputs, None, &x);
        drop(normed);
        let normed = rms_norm(&middle, &self.feed_forward_norm, self.rms_norm_epsilon);
        let (y, feed_forward) = self.feed_forward.forward(&normed, adapters, &middle);
        (y, LayerTape { x, attention, middle, feed_forward })
    }

    /// `[tokens, hidden]` → `[tokens, hidden]`. With a cache the tokens continue the sequence in it.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        inputs: &LayerInputs<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 2> {
        let normed = rms_norm(&x, &self.attention_norm, self.rms_norm_epsilon);
        let (middle, _) = self.attention.forward(&normed, adapters, inputs, cache, &x);
        drop((normed, x));
        let normed = rms_norm(&middle, &self.feed_forward_norm, self.rms_norm_epsilon);
        self.feed_forward.forward(&normed, adapters, &middle).0
    }

    /// From the gradient `dy` of the layer's output to that of its input, unless nobody wants it. Adapter gradients
    /// are added to `gradients`.
    pub fn backward(
        &self,
        tape: LayerTape<B>,
        adapters: &LayerAdapters<B>,
        inputs: &LayerInputs<B>,
        dy: Tensor<B, 2>,
        wants_x: bool,
        gradients: &mut LayerGradients<B>,
    ) -> Option<Tensor<B, 2>> {
        let LayerTape { x, attention, middle, feed_forward } = tape;
        let normed = rms_norm(&middle, &self.feed_forward_norm, self.rms_norm_epsilon);
        let dnormed = self.feed_forward.backward(feed_forward, &normed, adapters, &dy, gradients);
        drop(normed);
        let (weight, epsilon) = (&self.feed_forward_norm, self.rms_norm_epsilon);
        let dmiddle = rms_norm_backward(&middle, weight, epsilon, dnormed, Some(&dy));
        drop((middle, dy));
        let normed = rms_norm(&x, &self.attention_norm, self.rms_norm_epsilon);
        let upstream = Upstream { dy: &dmiddle, wants_x };
        let dnormed = self.attention.backward(attention, &normed, adapters, inputs, upstream, gradients)?;
        let weight = &self.attention_norm;
        Some(rms_norm_backward(&x, weight, epsilon, dnormed, Some(&dmiddle)))
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
