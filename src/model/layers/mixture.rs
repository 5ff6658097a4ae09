//! The mixture of experts: tokens go to the experts that the router chooses, and their outputs are added up, weighed.
//!
//! ```text
//! rows = the tokens of each expert      a = w · activation(gate(rows)) · up(rows)      y = Σ_rows of a token down(a)
//! ```
//!
//! A weight multiplies what goes into the last projection, which is linear: the rows are as wide as an expert there, and
//! the router's gradient needs no output of an expert.

use burn_tensor::activation::sigmoid;
use burn_tensor::{DType, Tensor};
use tune_kernels::KernelBackend;
use tune_kernels::gated::{gated, gated_backward};
use tune_kernels::grouped_linear::{
    Group, GroupedBackward, grouped_linear, grouped_linear_backward, grouped_linear_down,
};
use tune_kernels::linear::{Down, FrozenWeight, Linear, LinearBackward, linear, linear_backward};
use tune_kernels::router::route_backward;
use tune_kernels::row_scale::{row_scale, row_scale_backward};

use super::Adapted;
use super::choice::Choice;
use super::dispatch::Dispatch;
use super::gated::{self, GatedTape};
use super::layer::{Call, Output, Upstream};
use super::mixture_inputs::{self, Given};
use crate::adapter::projection::{LayerGradients, Slot};
use crate::model::parts::{ConstantSpec, GatedSpec, MixtureSpec, ProjectionSpec, SharedExpertSpec};

/// What the forward pass saves; the rows of the experts and activation(gate) · up are computed again.
#[derive(Clone, Debug)]
pub struct MixtureTape<B: KernelBackend> {
    /// `[tokens, experts]`.
    logits: Tensor<B, 2>,
    dispatch: Dispatch,
    /// Of each row, f32.
    weights: Tensor<B, 1>,
    /// `[rows, intermediate]`.
    gate: Tensor<B, 2>,
    /// `[rows, intermediate]`.
    up: Tensor<B, 2>,
    /// activation(gate) · up, where the forward pass was run again: the backward pass, which follows, needs it.
    activated: Option<Tensor<B, 2>>,
    /// Of gate and up of the experts that have rows.
    inner: Vec<Option<Down<B>>>,
    /// Of their down.
    down: Vec<Option<Down<B>>>,
    shared: Option<SharedTape<B>>,
}

#[derive(Clone, Debug)]
struct SharedTape<B: KernelBackend> {
    gated: GatedTape<B>,
    /// Where its output is gated: the output, and the gate's f32 `[tokens]`.
    scaled: Option<(Tensor<B, 2>, Tensor<B, 1>)>,
}

/// block(x), `[tokens, hidden]`, as far as it is wanted.
pub(super) fn forward<B: KernelBackend>(
    spec: &MixtureSpec,
    x: &Tensor<B, 2>,
    call: &mut Call<'_, B>,
    output: Output<'_, B>,
) -> (Option<Tensor<B, 2>>, MixtureTape<B>) {
    let bias = spec.bias.as_ref().map(|bias| call.constant(bias).clone().reshape([spec.experts.len()]));
    let given = Given::of(spec, x, call);
    let logits = project(given.router(x), call.constant(&spec.gate), bias.as_ref());
    let choice = call.choice(|balance| Choice::new(&logits, spec.router, balance));
    let call = &*call;
    let dispatch = Dispatch::new(choice.chosen, spec.router.used, spec.experts.len());
    let biases = Biases::of(spec, call);
    let weights_of = match factors(spec, &dispatch, call) {
        Some(factors) => choice.weights * factors,
        None => choice.weights,
    };
    let weights = dispatch.numbers_to_rows(weights_of.clone());
    let inner_groups = groups(spec, &dispatch, call, inner);
    let mut projected = grouped_linear(&dispatch.to_rows(given.experts(x)), &linears(&inner_groups));
    let (Some(up), Some(gate)) = (projected.outputs.pop(), projected.outputs.pop()) else {
        unreachable!("an expert has gate and up")
    };
    let activated = gated(activation(spec), &gate, &up);
    let down_groups = groups(spec, &dispatch, call, outer);
    let is_read = matches!(output, Output::Onto(_));
    let scaled = row_scale(activated.clone(), &weights);
    let (routed, down) = match output {
        Output::Unread => (None, grouped_linear_down(&scaled, &unbiased(&down_groups))),
        Output::Onto(residual) => {
            let mut projected = grouped_linear(&scaled, &unbiased(&down_groups));
            let sum = projected.outputs.pop().map(|rows| dispatch.to_tokens(&rows));
            let sum = match (sum, residual) {
                (Some(sum), Some(residual)) => Some(sum + residual.clone()),
                (sum, _) => sum,
            };
            let sum = match (sum, &biases) {
                (Some(sum), Some(biases)) => Some(sum + biases.weighed(&dispatch, weights_of, x.dtype())),
                (sum, _) => sum,
            };
            (sum, projected.down)
        }
    };
    let (y, shared) = match &spec.shared {
        Some(shared) => {
            let (y, tape) = shared_forward(shared, x, call, routed);
            (y, Some(tape))
        }
        None => (routed, None),
    };
    let activated = Some(activated).filter(|_| !is_read);
    (y, MixtureTape { logits, dispatch, weights, gate, up, activated, inner: projected.down, down, shared })
}

/// Returns dL/dx, or `None` if it is not wanted. `x` is the forward's input.
pub(super) fn backward<B: KernelBackend>(
    spec: &MixtureSpec,
    tape: MixtureTape<B>,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    upstream: Upstream<'_, B>,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let MixtureTape { logits, dispatch, weights, gate, up, activated, inner: inner_down, down, shared } =
        tape;
    let Upstream { dy, wants_x } = upstream;
    for (expert, rows) in &dispatch.experts {
        gradients.count_tokens(*expert, rows.len(), spec.experts.len());
    }
    let mut dx = match (&spec.shared, shared) {
        (Some(spec), Some(tape)) => shared_backward(spec, tape, x, call, upstream, gradients),
        _ => None,
    };
    let inner_groups = groups(spec, &dispatch, call, inner);
    let down_groups = groups(spec, &dispatch, call, outer);
    let (inner_adapted, down_adapted) = (is_adapted(&inner_groups), is_adapted(&down_groups));
    if !wants_x && !inner_adapted && !down_adapted {
        return None;
    }
    let activated = activated.unwrap_or_else(|| gated(activation(spec), &gate, &up));
    let scaled = down_adapted.then(|| row_scale(activated.clone(), &weights));
    let dbiases = Biases::of(spec, call).map(|biases| biases.slopes(&dispatch, dy));
    let dy = [dispatch.to_rows(dy)];
    let dscaled = experts_backward(&down_groups, scaled.as_ref(), &down, &dy, true, gradients);
    drop((dy, scaled));
    let Some(dscaled) = dscaled else { unreachable!("the gradient was asked for") };
    let (dactivated, dweights) = row_scale_backward(&activated, &weights, dscaled);
    drop(activated);
    let (dgate, dup) = gated_backward(activation(spec), gate, up, dactivated);
    let given = Given::of(spec, x, call);
    let rows = inner_adapted.then(|| dispatch.to_rows(given.experts(x)));
    let drows =
        experts_backward(&inner_groups, rows.as_ref(), &inner_down, &[dgate, dup], wants_x, gradients)?;
    let routed = dispatch.to_tokens(&drows);
    drop((rows, drows));
    let dweights = dispatch.numbers_to_tokens(dweights, spec.router.used);
    let dweights = match dbiases {
        Some(dbiases) => dweights + dbiases,
        None => dweights,
    };
    let dweights = match factors(spec, &dispatch, call) {
        Some(factors) => dweights * factors,
        None => dweights,
    };
    let dlogits = route_backward(&logits, &dispatch.chosen, spec.router, &dweights);
    let dlogits = call.inputs.balance.add_to(dlogits, &logits);
    let read = project_backward(call.constant(&spec.gate), dlogits);
    let routed = mixture_inputs::backward(spec, x, call, routed, read);
    dx = Some(match dx {
        Some(shared) => shared + routed,
        None => routed,
    });
    dx
}

/// The expert of every token, added to the sum of the others where that is wanted.
fn shared_forward<B: KernelBackend>(
    spec: &SharedExpertSpec,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    routed: Option<Tensor<B, 2>>,
) -> (Option<Tensor<B, 2>>, SharedTape<B>) {
    let Some(gate) = &spec.gate else {
        let output = match &routed {
            Some(routed) => Output::Onto(Some(routed)),
            None => Output::Unread,
        };
        let (y, gated) = gated::forward(&spec.gated, x, call, output);
        return (y, SharedTape { gated, scaled: None });
    };
    let (output, gated) = gated::forward(&spec.gated, x, call, Output::Onto(None));
    let Some(output) = output else { unreachable!("the output was asked for") };
    let factors = gate_of(gate, x, call);
    let y = routed.map(|routed| routed + row_scale(output.clone(), &factors));
    (y, SharedTape { gated, scaled: Some((output, factors)) })
}

fn shared_backward<B: KernelBackend>(
    spec: &SharedExpertSpec,
    tape: SharedTape<B>,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    upstream: Upstream<'_, B>,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let (Some(gate), Some((output, factors))) = (&spec.gate, tape.scaled) else {
        return gated::backward(&spec.gated, tape.gated, x, call, upstream, gradients);
    };
    let (dy, dfactors) = row_scale_backward(&output, &factors, upstream.dy.clone());
    drop(output);
    let upstream = Upstream { dy: &dy, ..upstream };
    let dx = gated::backward(&spec.gated, tape.gated, x, call, upstream, gradients)?;
    let slope = dfactors * factors.clone() * (factors.clone() * -1.0 + 1.0);
    let tokens = slope.dims()[0];
    let dlogits = slope.reshape([tokens, 1]).cast(x.dtype());
    Some(dx + project_backward(call.constant(gate), dlogits))
}

/// σ(x · g), f32 `[tokens]`.
fn gate_of<B: KernelBackend>(gate: &ConstantSpec, x: &Tensor<B, 2>, call: &Call<'_, B>) -> Tensor<B, 1> {
    let logits = project(x, call.constant(gate), None);
    let tokens = logits.dims()[0];
    sigmoid(logits.cast(DType::F32)).reshape([tokens])
}

/// x · weightᵀ + bias.
fn project<B: KernelBackend>(
    x: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    bias: Option<&Tensor<B, 1>>,
) -> Tensor<B, 2> {
    let weight = FrozenWeight::Dense(weight.clone());
    linear(x, &[Linear { weight: &weight, bias, lora: None }], None).outputs.remove(0)
}

/// The biases of the experts' last projections. A weight multiplies them too, so they are added behind the sum of the rows:
/// the weights of a token, 0 where an expert is not chosen, times all biases.
struct Biases<B: KernelBackend> {
    /// `[hidden, experts]`.
    columns: Tensor<B, 2>,
}

impl<B: KernelBackend> Biases<B> {
    /// `None` where experts have none.
    fn of(spec: &MixtureSpec, call: &Call<'_, B>) -> Option<Self> {
        // One without is not asked for: it may not be there.
        let own = |expert: &GatedSpec| expert.down.bias.then(|| call.adapted(&expert.down));
        let bias = |expert: &GatedSpec| own(expert)?.projection.bias.clone();
        let biases: Option<Vec<_>> = spec.experts.iter().map(bias).collect();
        Some(Self { columns: Tensor::stack(biases?, 1) })
    }

    /// Σ of the weights of each token times the biases, `[tokens, hidden]` in `dtype`.
    fn weighed(&self, dispatch: &Dispatch, weights: Tensor<B, 2>, dtype: DType) -> Tensor<B, 2> {
        let [_, experts] = self.columns.dims();
        project(&dispatch.numbers_to_experts(weights, experts).cast(dtype), &self.columns, None)
    }

    /// Their part of the gradient of the weights, f32 `[tokens, used]`.
    fn slopes(&self, dispatch: &Dispatch, dy: &Tensor<B, 2>) -> Tensor<B, 2> {
        dispatch.numbers_of_experts(project_backward(&self.columns, dy.clone()).cast(DType::F32))
    }
}

/// The gradient of [`project`]'s input.
fn project_backward<B: KernelBackend>(weight: &Tensor<B, 2>, dy: Tensor<B, 2>) -> Tensor<B, 2> {
    let weight = FrozenWeight::Dense(weight.clone());
    let layers = [Linear { weight: &weight, bias: None, lora: None }];
    let request =
        LinearBackward { x: None, layers: &layers, down: None, dy: &[dy], wants_x: true, sums: vec![None] };
    let Some(dx) = linear_backward(request).x else { unreachable!("the gradient was asked for") };
    dx
}

/// The factors of each token's experts, f32 `[tokens, used]`.
fn factors<B: KernelBackend>(
    spec: &MixtureSpec,
    dispatch: &Dispatch,
    call: &Call<'_, B>,
) -> Option<Tensor<B, 2>> {
    let (factors, tokens) =
        (call.constant(spec.factors.as_ref()?), dispatch.chosen.len() / spec.router.used.max(1));
    let row = factors.clone().cast(DType::F32).reshape([1, spec.experts.len()]);
    Some(dispatch.numbers_of_experts(row.repeat_dim(0, tokens)))
}

fn activation(spec: &MixtureSpec) -> tune_kernels::gated::Activation {
    spec.experts.first().map_or(tune_kernels::gated::Activation::Silu, |expert| expert.activation)
}

fn inner(expert: &GatedSpec) -> Vec<&ProjectionSpec> {
    expert.inner.projections()
}

fn outer(expert: &GatedSpec) -> Vec<&ProjectionSpec> {
    vec![&expert.down]
}

/// The rows of an expert and some of its projections.
type ExpertRows<'a, B> = (std::ops::Range<usize>, Vec<Adapted<'a, B>>);

/// Some projections of the experts that have rows.
fn groups<'a, B: KernelBackend>(
    spec: &MixtureSpec,
    dispatch: &Dispatch,
    call: &Call<'a, B>,
    of: impl Fn(&GatedSpec) -> Vec<&ProjectionSpec>,
) -> Vec<ExpertRows<'a, B>> {
    let chosen = dispatch.experts.iter().map(|(expert, _)| &spec.experts[*expert]);
    call.bring(&chosen.flat_map(|expert| [inner(expert), outer(expert)].concat()).collect::<Vec<_>>());
    let group = |(expert, rows): &(usize, std::ops::Range<usize>)| {
        let projections = of(&spec.experts[*expert]);
        (rows.clone(), projections.into_iter().map(|projection| call.adapted(projection)).collect())
    };
    dispatch.experts.iter().map(group).collect()
}

fn linears<'a, B: KernelBackend>(groups: &[ExpertRows<'a, B>]) -> Vec<Group<'a, B>> {
    let group = |(rows, layers): &ExpertRows<'a, B>| Group {
        rows: rows.clone(),
        layers: layers.iter().map(Adapted::linear).collect(),
    };
    groups.iter().map(group).collect()
}

/// [`linears`] of the last projections, whose biases are [`Biases`].
fn unbiased<'a, B: KernelBackend>(groups: &[ExpertRows<'a, B>]) -> Vec<Group<'a, B>> {
    let mut groups = linears(groups);
    groups.iter_mut().flat_map(|group| &mut group.layers).for_each(|layer| layer.bias = None);
    groups
}

fn is_adapted<B: KernelBackend>(groups: &[ExpertRows<'_, B>]) -> bool {
    groups.iter().flat_map(|(_, layers)| layers).any(|layer| layer.adapter.is_some())
}

/// The gradient of the rows, if it is wanted; adds the gradients of adapters to `gradients`.
fn experts_backward<B: KernelBackend>(
    groups: &[ExpertRows<'_, B>],
    x: Option<&Tensor<B, 2>>,
    down: &[Option<Down<B>>],
    dy: &[Tensor<B, 2>],
    wants_x: bool,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let slots =
        |(_, layers): &ExpertRows<'_, B>| layers.iter().map(|layer| layer.slot).collect::<Vec<Slot>>();
    let slots: Vec<Vec<Slot>> = groups.iter().map(slots).collect();
    let sums = slots.iter().map(|slots| gradients.take(slots)).collect();
    let request = GroupedBackward { x, groups: &linears(groups), down, dy, wants_x, sums };
    let found = grouped_linear_backward(request);
    for (slots, adapters) in slots.iter().zip(found.adapters) {
        if adapters.iter().any(Option::is_some) {
            gradients.put(slots, adapters);
        }
    }
    found.x
}
