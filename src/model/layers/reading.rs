//! Attention over the keys and values of an earlier layer, whose gradients it leaves to that layer.

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::{AttentionBackward, AttentionOptions, attention_backward};
use tune_kernels::rope::Direction;

use super::adapted::{ProjectedTape, project_backward, project_backward_through, project_each};
use super::attention::attend;
use super::layer::{Call, Output, Upstream};
use crate::adapter::projection::LayerGradients;
use crate::model::parts::ReadingSpec;

/// What the forward pass saves; the input is computed again.
#[derive(Clone, Debug)]
pub struct ReadingTape<B: KernelBackend> {
    /// Queries before norm and rotation, `[tokens, heads · dim]`; `None` where they follow from DoRA's unscaled output.
    query: Option<Tensor<B, 2>>,
    /// Attention's output, before the output projection.
    mixed: Tensor<B, 3>,
    /// ln Σ exp of every query's scores, f32 `[heads, tokens]`.
    log_sum_exp: Tensor<B, 2>,
    /// Of the queries.
    inner: ProjectedTape<B>,
    /// Of the output projection.
    output: ProjectedTape<B>,
}

/// block(x), `[tokens, hidden]`, as far as it is wanted.
pub(super) fn forward<B: KernelBackend>(
    spec: &ReadingSpec,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    output: Output<'_, B>,
) -> (Option<Tensor<B, 2>>, ReadingTape<B>) {
    let ([raw], inner) = project_each(x, &[call.adapted(&spec.query)]);
    let states = call.inputs.shared.read(spec.from);
    let query = ready(spec, call, &raw);
    let (mixed, log_sum_exp) = attend(&query, &states, &options(spec, call));
    let (y, output) = output.of(&flat(&mixed), call.adapted(&spec.output));
    (y, ReadingTape { query: inner.saved(0, raw), mixed, log_sum_exp, inner, output })
}

/// Returns dL/dx, or `None` if it is not wanted. `x` is the forward's input, computed again by the caller.
pub(super) fn backward<B: KernelBackend>(
    spec: &ReadingSpec,
    tape: ReadingTape<B>,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    upstream: Upstream<'_, B>,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let [tokens, _] = x.dims();
    let ReadingTape { query, mixed, log_sum_exp, inner, output } = tape;
    let layer = [call.adapted(&spec.query)];
    let raw = inner.output(0, query, &layer);
    let outer = call.adapted(&spec.output);
    let dmixed = project_backward_through(&flat(&mixed), outer, output, upstream.dy, gradients);
    let Some([key, value]) = call.inputs.shared.read(spec.from).pop() else {
        unreachable!("a layer below gave them")
    };
    let [dquery, dkey, dvalue] = attention_backward(AttentionBackward {
        q: &ready(spec, call, &raw),
        k: &key,
        v: &value,
        output: &mixed,
        log_sum_exp: &log_sum_exp,
        options: &options(spec, call),
        dy: &dmixed.reshape([tokens, spec.heads.queries, spec.heads.dim]),
    });
    call.inputs.shared.add_gradients(spec.from, [dkey, dvalue]);
    let dquery = call.inputs.rotations[spec.rotary].queries(dquery, Direction::Backward);
    let dquery = call.norm(&spec.norm).backward_heads(&heads(spec, &raw), dquery);
    project_backward(x, &layer, inner, vec![flat(&dquery)], upstream.wants_x, gradients)
}

/// Queries as attention is given them.
fn ready<B: KernelBackend>(spec: &ReadingSpec, call: &Call<'_, B>, raw: &Tensor<B, 2>) -> Tensor<B, 3> {
    let normed = call.norm(&spec.norm).forward_heads(&heads(spec, raw));
    call.inputs.rotations[spec.rotary].queries(normed, Direction::Forward)
}

fn heads<B: KernelBackend>(spec: &ReadingSpec, x: &Tensor<B, 2>) -> Tensor<B, 3> {
    let [tokens, _] = x.dims();
    x.clone().reshape([tokens, spec.heads.queries, spec.heads.dim])
}

fn flat<B: KernelBackend>(x: &Tensor<B, 3>) -> Tensor<B, 2> {
    let [tokens, heads, dim] = x.dims();
    x.clone().reshape([tokens, heads * dim])
}

fn options<B: KernelBackend>(spec: &ReadingSpec, call: &Call<'_, B>) -> AttentionOptions {
    AttentionOptions {
        documents: call.inputs.documents.clone(),
        scaling: spec.scaling,
        sliding_window: spec.window,
        soft_cap: None,
    }
}
