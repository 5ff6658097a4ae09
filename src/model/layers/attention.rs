//! Grouped-query self-attention with rotary positions, within each document of a batch.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::attention;
use tune_kernels::rms_norm::rms_norm;
use tune_kernels::rope::rope;

use super::cache::LayerCache;
use super::{FrozenProjection, LayerInputs};
use crate::adapter::projection::LayerAdapters;

/// Frozen weights of an attention block.
#[derive(Clone, Debug)]
pub struct Attention<B: KernelBackend> {
    /// `[heads · head_dim, hidden]`.
    pub query: FrozenProjection<B>,
    /// `[key_value_heads · head_dim, hidden]`.
    pub key: FrozenProjection<B>,
    /// `[key_value_heads · head_dim, hidden]`.
    pub value: FrozenProjection<B>,
    /// `[hidden, heads · head_dim]`.
    pub output: FrozenProjection<B>,
    /// Norm over each head's queries and keys, `[head_dim]` each.
    pub head_norms: Option<HeadNorms<B>>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Keys a query may look back at, itself included.
    pub sliding_window: Option<usize>,
}

/// RMS norms over single heads, before the rotation.
#[derive(Clone, Debug)]
pub struct HeadNorms<B: KernelBackend> {
    /// For queries.
    pub query: Tensor<B, 1>,
    /// For keys.
    pub key: Tensor<B, 1>,
    /// Added to the mean square before its root.
    pub epsilon: f64,
}

impl<B: KernelBackend<Frozen = B>> Attention<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`. With a cache the tokens continue the sequence in it.
    pub fn forward<T: KernelBackend<Frozen = B>>(
        &self,
        x: Tensor<T, 2>,
        adapters: &LayerAdapters<T>,
        inputs: &LayerInputs<B>,
        cache: Option<&mut LayerCache<T>>,
    ) -> Tensor<T, 2> {
        let [tokens, _] = x.dims();
        let query = self.query.forward(x.clone(), adapters.query.as_ref());
        let key = self.key.forward(x.clone(), adapters.key.as_ref());
        let value = self.value.forward(x, adapters.value.as_ref());

        let norms = self.head_norms.as_ref();
        let query = self.rotate(query, self.heads, norms.map(|norms| (&norms.query, norms.epsilon)), inputs);
        let key =
            self.rotate(key, self.key_value_heads, norms.map(|norms| (&norms.key, norms.epsilon)), inputs);
        let value = value.reshape([tokens, self.key_value_heads, self.head_dim]);
        let (key, value) = match cache {
            Some(cache) => cache.append(key, value),
            None => (key, value),
        };

        let scaling = 1.0 / (self.head_dim as f32).sqrt();
        let mixed = attention(query, key, value, &inputs.documents, scaling, self.sliding_window);
        self.output.forward(mixed.reshape([tokens, self.heads * self.head_dim]), adapters.output.as_ref())
    }

    /// Splits into heads, normalizes them if the family does, and rotates by position:
    /// `[tokens, heads · head_dim]` → `[tokens, heads, head_dim]`.
    fn rotate<T: KernelBackend<Frozen = B>>(
        &self,
        x: Tensor<T, 2>,
        heads: usize,
        norm: Option<(&Tensor<B, 1>, f64)>,
        inputs: &LayerInputs<B>,
    ) -> Tensor<T, 3> {
        let [tokens, _] = x.dims();
        let x = match norm {
            Some((weight, epsilon)) => rms_norm(x.reshape([tokens * heads, self.head_dim]), weight, epsilon),
            None => x,
        };
        rope(x.reshape([tokens, heads, self.head_dim]), &inputs.rotary, &inputs.position_ids)
    }
}
