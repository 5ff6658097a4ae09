//! Grouped-query self-attention with rotary positions, within each document of a batch.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::{AttentionBackward, AttentionOptions, attention, attention_backward};
use tune_kernels::rms_norm::{rms_norm, rms_norm_backward};
use tune_kernels::rope::{Direction, rope, rope_all};

use super::adapted::{ProjectedTape, project, project_backward};
use super::cache::LayerCache;
use super::{Adapted, FrozenProjection, LayerInputs};
use crate::adapter::projection::{LayerAdapters, LayerGradients, Projection};

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

/// What the backward pass wants of the forward pass; the input is computed again.
#[derive(Clone, Debug)]
pub struct AttentionTape<B: KernelBackend> {
    /// Rotated queries, or where the family normalizes heads, queries before that; unless they can be made again.
    query: Option<Tensor<B, 3>>,
    /// Keys, alike.
    key: Option<Tensor<B, 3>>,
    /// Values, unless they can be made again.
    value: Option<Tensor<B, 3>>,
    /// Attention's output, before the output projection.
    mixed: Tensor<B, 3>,
    /// ln Σ exp of every query's scores, f32 `[heads, tokens]`.
    log_sum_exp: Tensor<B, 2>,
    /// Of queries, keys and values.
    inner: ProjectedTape<B>,
    /// Of the output projection.
    output: ProjectedTape<B>,
}

/// What comes from above in a backward pass, and whether anything below wants more.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a, B: KernelBackend> {
    /// Gradient of the block's output, `[tokens, hidden]`.
    pub dy: &'a Tensor<B, 2>,
    /// Whether the gradient of its input is wanted.
    pub wants_x: bool,
}

impl<B: KernelBackend> Attention<B> {
    /// `residual` + block(x), `[tokens, hidden]`. With a cache the tokens continue the sequence in it; the tape is
    /// then of no use for a backward pass.
    pub fn forward(
        &self,
        x: &Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        inputs: &LayerInputs<B>,
        cache: Option<&mut LayerCache<B>>,
        residual: &Tensor<B, 2>,
    ) -> (Tensor<B, 2>, AttentionTape<B>) {
        let [tokens, _] = x.dims();
        let mut inner = project(x, &self.inner(adapters), None);
        let mut heads = |count: usize| inner.outputs.remove(0).reshape([tokens, count, self.head_dim]);
        let (raw_query, raw_key) = (heads(self.heads), heads(self.key_value_heads));
        let value = heads(self.key_value_heads);
        let (kept, [query, key]) = match &self.head_norms {
            Some(norms) => {
                let normed = [norms.apply(&raw_query, &norms.query), norms.apply(&raw_key, &norms.key)];
                (Some((raw_query, raw_key)), turned(normed, inputs, Direction::Forward))
            }
            None => (None, turned([raw_query, raw_key], inputs, Direction::Forward)),
        };
        let (key, value) = match cache {
            Some(cache) => cache.append(key, value),
            None => (key, value),
        };
        let (mixed, log_sum_exp) = attention(&query, &key, &value, &self.options(inputs));
        let layer = self.output.with(adapters.output.as_ref());
        let mut output = project(&self.flat(&mixed), &[layer], Some(residual));
        let (query, key) = kept.unwrap_or((query, key));
        let tape = AttentionTape {
            query: inner.tape.keep(0, query),
            key: inner.tape.keep(1, key),
            value: inner.tape.keep(2, value),
            mixed,
            log_sum_exp,
            inner: inner.tape,
            output: output.tape,
        };
        (output.outputs.remove(0), tape)
    }

    /// The gradient of x, unless nobody wants it. `x` is the forward's
    /// input, computed again by the caller.
    pub fn backward(
        &self,
        tape: AttentionTape<B>,
        x: &Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        inputs: &LayerInputs<B>,
        Upstream { dy, wants_x }: Upstream<'_, B>,
        gradients: &mut LayerGradients<B>,
    ) -> Option<Tensor<B, 2>> {
        let [tokens, _] = x.dims();
        let AttentionTape { query, key, value, mixed, log_sum_exp, inner, output } = tape;
        let layer = [(Projection::Output, self.output.with(adapters.output.as_ref()))];
        let found = project_backward(&self.flat(&mixed), layer, output, [dy.clone()], true, gradients);
        let Some(mixed_gradient) = found else { unreachable!("asked for") };
        let [query_layer, key_layer, value_layer] = self.inner(adapters);
        let again = |index: usize, layer: Adapted<'_, B>, heads: usize| {
            inner.output(index, layer, None).reshape([tokens, heads, self.head_dim])
        };
        let value = value.unwrap_or_else(|| again(2, value_layer, self.key_value_heads));
        let (raw, query, key) = match &self.head_norms {
            Some(norms) => {
                let query = query.unwrap_or_else(|| again(0, query_layer, self.heads));
                let key = key.unwrap_or_else(|| again(1, key_layer, self.key_value_heads));
                let normed = [norms.apply(&query, &norms.query), norms.apply(&key, &norms.key)];
                let [turned_query, turned_key] = turned(normed, inputs, Direction::Forward);
                (Some((query, key)), turned_query, turned_key)
            }
            None => {
                let turned = |x| rope(x, &inputs.rotary, &inputs.positions, Direction::Forward);
                let query = query.unwrap_or_else(|| turned(again(0, query_layer, self.heads)));
                let key = key.unwrap_or_else(|| turned(again(1, key_layer, self.key_value_heads)));
                (None, query, key)
            }
        };
        let [dquery, dkey, dvalue] = attention_backward(AttentionBackward {
            q: &query,
            k: &key,
            v: &value,
            output: &mixed,
            log_sum_exp: &log_sum_exp,
            options: &self.options(inputs),
            dy: &mixed_gradient.reshape([tokens, self.heads, self.head_dim]),
        });
        drop((query, key, value, mixed));
        let [dquery, dkey] = turned([dquery, dkey], inputs, Direction::Backward);
        let (dquery, dkey) = match (&self.head_norms, raw) {
            (Some(norms), Some((raw_query, raw_key))) => (
                norms.apply_backward(&raw_query, &norms.query, dquery),
                norms.apply_backward(&raw_key, &norms.key, dkey),
            ),
            _ => (dquery, dkey),
        };
        let layers = [
            (Projection::Query, query_layer),
            (Projection::Key, key_layer),
            (Projection::Value, value_layer),
        ];
        let dy = [self.flat(&dquery), self.flat(&dkey), self.flat(&dvalue)];
        project_backward(x, layers, inner, dy, wants_x, gradients)
    }

    fn inner<'a>(&'a self, adapters: &'a LayerAdapters<B>) -> [Adapted<'a, B>; 3] {
        [
            self.query.with(adapters.query.as_ref()),
            self.key.with(adapters.key.as_ref()),
            self.value.with(adapters.value.as_ref()),
        ]
    }

    fn options(&self, inputs: &LayerInputs<B>) -> AttentionOptions {
        AttentionOptions {
            documents: inputs.documents.clone(),
            scaling: 1.0 / (self.head_dim as f32).sqrt(),
            sliding_window: self.sliding_window,
        }
    }

    /// `[tokens, heads, head_dim]` → `[tokens, heads · head_dim]`.
    fn flat(&self, x: &Tensor<B, 3>) -> Tensor<B, 2> {
        let [tokens, heads, head_dim] = x.dims();
        x.clone().reshape([tokens, heads * head_dim])
    }
}

/// Every head of queries and keys rotated by its token's position, or their gradients back.
fn turned<B: KernelBackend>(
    x: [Tensor<B, 3>; 2],
    inputs: &LayerInputs<B>,
    direction: Direction,
) -> [Tensor<B, 3>; 2] {
    rope_all(x, &inputs.rotary, &inputs.positions, direction)
}

impl<B: KernelBackend> HeadNorms<B> {
    fn apply(&self, x: &Tensor<B, 3>, weight: &Tensor<B, 1>) -> Tensor<B, 3> {
        let shape = x.dims();
        rms_norm(&rows(x), weight, self.epsilon).reshape(shape)
    }

    fn apply_backward(&self, x: &Tensor<B, 3>, weight: &Tensor<B, 1>, dy: Tensor<B, 3>) -> Tensor<B, 3> {
        let shape = x.dims();
        let [tokens, heads, head_dim] = shape;
        let dy = dy.reshape([tokens * heads, head_dim]);
        rms_norm_backward(&rows(x), weight, self.epsilon, dy, None).reshape(shape)
    }
}

/// One row for each head of each token.
fn rows<B: KernelBackend>(x: &Tensor<B, 3>) -> Tensor<B, 2> {
    let [tokens, heads, head_dim] = x.dims();
    x.clone().reshape([tokens * heads, head_dim])
}
