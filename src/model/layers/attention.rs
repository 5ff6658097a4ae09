//! Grouped-query self-attention with rotary positions, within each document of a batch.

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::{
    AttentionBackward, AttentionOptions, attention, attention_apart, attention_backward,
};
use tune_kernels::gated::{Activation, gated, gated_backward};
use tune_kernels::rms_norm::{RmsNorm, rms_norm, rms_norm_backward};
use tune_kernels::rope::Direction;
use tune_kernels::row_scale::row_scale;

use super::adapted::{ProjectedTape, project, project_backward, project_backward_through};
use super::layer::{Call, Output, Upstream};
use super::{Adapted, LayerInputs, output_gate};
use crate::adapter::projection::LayerGradients;
use crate::model::parts::{AttentionSpec, HeadNorms, Inner, OutputGate};

/// What the forward pass saves; the input is computed again.
#[derive(Clone, Debug)]
pub struct AttentionTape<B: KernelBackend> {
    /// Rotated queries, or where heads are normalized, queries before that; `None` where they follow from DoRA's unscaled
    /// output.
    query: Option<Tensor<B, 3>>,
    /// Keys, alike.
    key: Option<Tensor<B, 3>>,
    /// Values, alike.
    value: Option<Tensor<B, 3>>,
    /// The gate of the output, `[tokens, heads · dim]`, alike; `None` where there is none.
    gate: Option<Tensor<B, 2>>,
    /// Attention's output, before the output projection.
    mixed: Tensor<B, 3>,
    /// ln Σ exp of every query's scores, f32 `[heads, tokens]`.
    log_sum_exp: Tensor<B, 2>,
    /// Of queries, keys and values.
    inner: ProjectedTape<B>,
    /// Of the output projection.
    output: ProjectedTape<B>,
}

/// block(x), `[tokens, hidden]`, as far as it is wanted. With caches the tokens continue the sequences in
/// them; the tape is then of no use for a backward pass.
pub(super) fn forward<B: KernelBackend>(
    spec: &AttentionSpec,
    x: &Tensor<B, 2>,
    call: &mut Call<'_, B>,
    output: Output<'_, B>,
) -> (Option<Tensor<B, 2>>, AttentionTape<B>) {
    let projected = project(x, &inner(spec, call), None);
    let inner = projected.tape;
    let mut outputs: Vec<_> = projected.outputs.into_iter().map(Some).collect();
    let gate = take_gate(spec, &mut outputs);
    let [raw_query, raw_key, value] = split(spec, outputs);
    let (Some(raw_query), Some(raw_key), Some(value)) = (raw_query, raw_key, value) else {
        unreachable!("every output is there")
    };
    let (raw, [query, key]) = match Norms::of(spec) {
        Some(norms) => {
            let raw = [raw_query, raw_key];
            let ready = Normed::of(spec, norms, call, &raw).ready;
            let [query, key] = raw;
            (Some((query, key)), ready)
        }
        None => (None, rotated(spec, [raw_query, raw_key], call.inputs, Direction::Forward)),
    };
    let raw_value = spec.value_norm.is_some().then(|| value.clone());
    let value = match spec.value_norm {
        Some(norm) => bare_forward(norm, &value),
        None => value,
    };
    let states = match &mut call.cache {
        Some(caches) => caches.append(&call.inputs.documents, &key, &value),
        None => vec![[key.clone(), value.clone()]],
    };
    let (mixed, log_sum_exp) = attend(&query, &states, &options(spec, call.inputs));
    if let Some(number) = spec.gives {
        call.inputs.shared.give(number, states);
    }
    let (mixed, log_sum_exp) = match &spec.sinks {
        Some(sinks) => with_sinks(mixed, log_sum_exp, call.constant(sinks)),
        None => (mixed, log_sum_exp),
    };
    let (y, output) = output.of(&activated(gate.as_ref(), &mixed), call.adapted(&spec.output));
    let (query, key) = raw.unwrap_or((query, key));
    let [query_index, key_index, value_index] = match spec.inner {
        Inner::Separate { .. } => [0, 1, 2],
        Inner::SharedKey { .. } => [0, 1, 1],
        Inner::Fused(_) | Inner::ByHead(_) => [0; 3],
    };
    let gate_index = match spec.output_gate {
        Some(OutputGate::Own(_)) => spec.inner.projections().len(),
        Some(OutputGate::InQuery) | None => query_index,
    };
    let tape = AttentionTape {
        query: inner.saved(query_index, query),
        key: inner.saved(key_index, key),
        value: match spec.inner {
            // The raw keys.
            Inner::SharedKey { .. } => None,
            _ => inner.saved(value_index, raw_value.unwrap_or(value)),
        },
        gate: gate.and_then(|gate| inner.saved(gate_index, gate)),
        mixed,
        log_sum_exp,
        inner,
        output,
    };
    (y, tape)
}

/// Returns dL/dx, or `None` if it is not wanted. `x` is the forward's input, computed again by the caller.
pub(super) fn backward<B: KernelBackend>(
    spec: &AttentionSpec,
    tape: AttentionTape<B>,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    upstream: Upstream<'_, B>,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let [tokens, _] = x.dims();
    let AttentionTape { query, key, value, gate, mixed, log_sum_exp, inner: inner_tape, output } = tape;
    let layers = inner(spec, call);
    let mut again = inner_tape.all_scaled_again(&layers);
    let gate_again = take_gate(spec, &mut again);
    let gate = gate.or(gate_again);
    let read = activated(gate.as_ref(), &mixed);
    let layer = call.adapted(&spec.output);
    let dread = project_backward_through(&read, layer, output, upstream.dy, gradients);
    drop(read);
    let (dgate, dmixed) = match gate {
        Some(gate) => {
            let (dgate, dmixed) = gated_backward(Activation::Sigmoid, gate, flat(&mixed), dread);
            (Some(dgate), dmixed)
        }
        None => (None, dread),
    };
    let [query_again, key_again, value_again] = split(spec, again);
    let rotation = spec.rotary.map(|rotary| &call.inputs.rotations[rotary]);
    let (normed, query, key) = match Norms::of(spec) {
        Some(norms) => {
            let (Some(query), Some(key)) = (query.or(query_again), key.or(key_again)) else {
                unreachable!("an output is saved, or scaled again")
            };
            let Normed { input, ready: [query, key] } = Normed::of(spec, norms, call, &[query, key]);
            (Some((norms, input)), Some(query), Some(key))
        }
        None => {
            let rotate_query = |x| match rotation {
                Some(rotation) => rotation.queries(x, Direction::Forward),
                None => x,
            };
            let rotate_key = |x| match rotation {
                Some(rotation) => rotation.keys(x),
                None => x,
            };
            (None, query.or_else(|| query_again.map(rotate_query)), key.or_else(|| key_again.map(rotate_key)))
        }
    };
    let raw_key = || normed.as_ref().map(|(_, [_, key])| key.clone());
    let raw_value = match spec.inner {
        Inner::SharedKey { .. } => raw_key(),
        _ => value.or(value_again),
    };
    let (Some(query), Some(key), Some(raw_value)) = (query, key, raw_value) else {
        unreachable!("an output is saved, or scaled again")
    };
    let value = match spec.value_norm {
        Some(norm) => bare_forward(norm, &raw_value),
        None => raw_value.clone(),
    };
    let [dquery, dkey, dvalue] = attention_backward(AttentionBackward {
        q: &query,
        k: &key,
        v: &value,
        output: &mixed,
        log_sum_exp: &log_sum_exp,
        options: &options(spec, call.inputs),
        dy: &dmixed.reshape([tokens, spec.heads.queries, spec.heads.dim]),
    });
    drop((query, key, value, mixed));
    let [dkey, dvalue] = match spec.gives {
        Some(number) => call.inputs.shared.with_gradients(number, [dkey, dvalue]),
        None => [dkey, dvalue],
    };
    let dvalue = match spec.value_norm {
        Some(norm) => bare_backward(norm, &raw_value, dvalue),
        None => dvalue,
    };
    drop(raw_value);
    let back = |gradients| rotated(spec, gradients, call.inputs, Direction::Backward);
    let [dquery, dkey] = match normed {
        None => back([dquery, dkey]),
        Some((norms, input)) if norms.follow_rotation() => back(norms.backward(call, &input, [dquery, dkey])),
        Some((norms, input)) => norms.backward(call, &input, back([dquery, dkey])),
    };
    let (dqueries, dgate) = match (dgate, &spec.output_gate) {
        (Some(dgate), Some(OutputGate::InQuery)) => {
            (output_gate::join([flat(&dquery), dgate], spec.heads.dim), None)
        }
        (dgate, _) => (flat(&dquery), dgate),
    };
    let [query, key, value] = [dqueries, flat(&dkey), flat(&dvalue)];
    drop((dquery, dkey, dvalue));
    let mut dy = match spec.inner {
        Inner::Separate { .. } => vec![query, key, value],
        Inner::SharedKey { .. } => vec![query, key + value],
        Inner::Fused(_) => vec![Tensor::cat(vec![query, key, value], 1)],
        Inner::ByHead(_) => {
            let heads =
                [query, key, value].map(|dy| dy.reshape([tokens, spec.heads.queries, spec.heads.dim]));
            let width = 3 * spec.heads.queries * spec.heads.dim;
            vec![Tensor::cat(heads.into(), 2).reshape([tokens, width])]
        }
    };
    dy.extend(dgate);
    project_backward(x, &layers, inner_tape, dy, upstream.wants_x, gradients)
}

/// Attention with the keys and values of all documents, or of each sequence that is continued.
pub(super) fn attend<B: KernelBackend>(
    query: &Tensor<B, 3>,
    states: &[[Tensor<B, 3>; 2]],
    options: &AttentionOptions,
) -> (Tensor<B, 3>, Tensor<B, 2>) {
    match states {
        [[key, value]] => attention(query, key, value, options),
        _ => attention_apart(query, states, options),
    }
}

fn inner<'a, B: KernelBackend>(spec: &AttentionSpec, call: &Call<'a, B>) -> Vec<Adapted<'a, B>> {
    spec.input_projections().into_iter().map(|projection| call.adapted(projection)).collect()
}

/// Queries, keys and values, `[tokens, heads, dim]`, from the outputs of the projections.
fn split<B: KernelBackend>(
    spec: &AttentionSpec,
    mut outputs: Vec<Option<Tensor<B, 2>>>,
) -> [Option<Tensor<B, 3>>; 3] {
    let heads = [spec.heads.queries, spec.heads.keys, spec.heads.keys];
    let shaped = |x: Tensor<B, 2>, heads: usize| {
        let [tokens, _] = x.dims();
        x.reshape([tokens, heads, spec.heads.dim])
    };
    match spec.inner {
        Inner::Separate { .. } => {
            let mut outputs = outputs.into_iter();
            heads.map(|heads| outputs.next().flatten().map(|x| shaped(x, heads)))
        }
        Inner::SharedKey { .. } => {
            let key = outputs.pop().flatten().map(|x| shaped(x, spec.heads.keys));
            let query = outputs.pop().flatten().map(|x| shaped(x, spec.heads.queries));
            [query, key.clone(), key]
        }
        Inner::ByHead(_) => {
            let all = outputs.pop().flatten();
            let dim = spec.heads.dim;
            [0, dim, 2 * dim].map(|start| {
                all.as_ref().map(|all| {
                    let [tokens, _] = all.dims();
                    let heads = all.clone().reshape([tokens, spec.heads.queries, 3 * dim]);
                    // A copy, which does not keep all three in memory.
                    shaped(
                        heads.narrow(2, start, dim).reshape([tokens, spec.heads.queries * dim]),
                        spec.heads.queries,
                    )
                })
            })
        }
        Inner::Fused(_) => {
            let all = outputs.pop().flatten();
            let mut end = 0;
            heads.map(|heads| {
                let (start, width) = (end, heads * spec.heads.dim);
                end += width;
                all.as_ref().map(|all| shaped(all.clone().narrow(1, start, width), heads))
            })
        }
    }
}

/// The gate of the output, taken out of the outputs of the projections, where there is one.
fn take_gate<B: KernelBackend>(
    spec: &AttentionSpec,
    outputs: &mut Vec<Option<Tensor<B, 2>>>,
) -> Option<Tensor<B, 2>> {
    match spec.output_gate.as_ref()? {
        OutputGate::InQuery => {
            let first = outputs.first_mut()?;
            let [query, gate] = output_gate::split(first.take()?, spec.heads.dim);
            *first = Some(query);
            Some(gate)
        }
        OutputGate::Own(_) => outputs.pop()?,
    }
}

/// What the output projection is given, `[tokens, heads · dim]`.
fn activated<B: KernelBackend>(gate: Option<&Tensor<B, 2>>, mixed: &Tensor<B, 3>) -> Tensor<B, 2> {
    match gate {
        Some(gate) => gated(Activation::Sigmoid, gate, &flat(mixed)),
        None => flat(mixed),
    }
}

/// Attention's output and ln Σ exp of its scores, `[heads, tokens]`, where each head has one score more, of which no value
/// comes. The backward pass of attention reads nothing else of it.
fn with_sinks<B: KernelBackend>(
    mixed: Tensor<B, 3>,
    log_sum_exp: Tensor<B, 2>,
    sinks: &Tensor<B, 2>,
) -> (Tensor<B, 3>, Tensor<B, 2>) {
    let ([tokens, heads, dim], [sums, _]) = (mixed.dims(), log_sum_exp.dims());
    let above = sinks.clone().reshape([sums, 1]) - log_sum_exp.clone();
    // ln(1 + exp x), without overflow.
    let rise = above.clone().clamp_min(0.0) + (above.abs() * -1.0).exp().log1p();
    let factors = (rise.clone() * -1.0).exp().transpose().reshape([tokens * heads]);
    let mixed = row_scale(mixed.reshape([tokens * heads, dim]), &factors);
    (mixed.reshape([tokens, heads, dim]), log_sum_exp + rise)
}

fn options<B: KernelBackend>(spec: &AttentionSpec, inputs: &LayerInputs<B>) -> AttentionOptions {
    AttentionOptions {
        documents: inputs.documents.clone(),
        scaling: spec.scaling,
        sliding_window: spec.window,
        soft_cap: spec.soft_cap,
    }
}

/// `[tokens, heads, dim]` → `[tokens, heads · dim]`.
fn flat<B: KernelBackend>(x: &Tensor<B, 3>) -> Tensor<B, 2> {
    let [tokens, heads, dim] = x.dims();
    x.clone().reshape([tokens, heads * dim])
}

/// Each head normalized, without a weight.
fn bare_forward<B: KernelBackend>(norm: RmsNorm, x: &Tensor<B, 3>) -> Tensor<B, 3> {
    let [tokens, heads, dim] = x.dims();
    let rows = x.clone().reshape([tokens * heads, dim]);
    rms_norm(&rows, &ones(x), norm).reshape([tokens, heads, dim])
}

/// The gradient of [`bare_forward`]'s input.
fn bare_backward<B: KernelBackend>(norm: RmsNorm, x: &Tensor<B, 3>, dy: Tensor<B, 3>) -> Tensor<B, 3> {
    let [tokens, heads, dim] = x.dims();
    let rows = |x: Tensor<B, 3>| x.reshape([tokens * heads, dim]);
    let dx = rms_norm_backward(&rows(x.clone()), &ones(x), norm, rows(dy), None);
    dx.reshape([tokens, heads, dim])
}

/// The weight of a norm that has none.
fn ones<B: KernelBackend>(x: &Tensor<B, 3>) -> Tensor<B, 1> {
    Tensor::ones([x.dims()[2]], (&x.device(), x.dtype()))
}

/// Queries and keys rotated as the layer rotates them, or their gradients back.
fn rotated<B: KernelBackend>(
    spec: &AttentionSpec,
    x: [Tensor<B, 3>; 2],
    inputs: &LayerInputs<B>,
    direction: Direction,
) -> [Tensor<B, 3>; 2] {
    match spec.rotary {
        Some(rotary) => inputs.rotations[rotary].apply(x, direction),
        None => x,
    }
}

/// Queries and keys that were normalized, before or after their rotation.
struct Normed<B: KernelBackend> {
    /// What the norms were given.
    input: [Tensor<B, 3>; 2],
    /// What attention is given.
    ready: [Tensor<B, 3>; 2],
}

impl<B: KernelBackend> Normed<B> {
    fn of(spec: &AttentionSpec, norms: Norms<'_>, call: &Call<'_, B>, raw: &[Tensor<B, 3>; 2]) -> Self {
        let rotate = |x| rotated(spec, x, call.inputs, Direction::Forward);
        match norms.follow_rotation() {
            true => {
                let input = rotate(raw.clone());
                Self { ready: norms.forward(call, &input), input }
            }
            false => Self { input: raw.clone(), ready: rotate(norms.forward(call, raw)) },
        }
    }
}

/// Norms of queries and keys.
#[derive(Clone, Copy)]
enum Norms<'a> {
    Weighted(&'a HeadNorms),
    Bare(RmsNorm),
}

impl<'a> Norms<'a> {
    fn of(spec: &'a AttentionSpec) -> Option<Self> {
        spec.head_norms.as_ref().map(Self::Weighted).or(spec.bare_head_norm.map(Self::Bare))
    }

    fn follow_rotation(self) -> bool {
        matches!(self, Self::Weighted(norms) if norms.follow_rotation)
    }

    fn forward<B: KernelBackend>(
        self,
        call: &Call<'_, B>,
        [query, key]: &[Tensor<B, 3>; 2],
    ) -> [Tensor<B, 3>; 2] {
        match self {
            Self::Weighted(norms) => {
                [call.norm(&norms.query).forward_heads(query), call.norm(&norms.key).forward_heads(key)]
            }
            Self::Bare(norm) => [bare_forward(norm, query), bare_forward(norm, key)],
        }
    }

    fn backward<B: KernelBackend>(
        self,
        call: &Call<'_, B>,
        [query, key]: &[Tensor<B, 3>; 2],
        [dquery, dkey]: [Tensor<B, 3>; 2],
    ) -> [Tensor<B, 3>; 2] {
        match self {
            Self::Weighted(norms) => {
                let dquery = call.norm(&norms.query).backward_heads(query, dquery);
                [dquery, call.norm(&norms.key).backward_heads(key, dkey)]
            }
            Self::Bare(norm) => [bare_backward(norm, query, dquery), bare_backward(norm, key, dkey)],
        }
    }
}
