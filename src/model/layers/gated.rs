//! The gated feed-forward block: down(activation(gate(x)) · up(x)).

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::gated::{gated, gated_backward};

use super::Adapted;
use super::adapted::{ProjectedTape, project, project_backward, project_backward_through};
use super::layer::{Call, Output, Upstream};
use crate::adapter::projection::LayerGradients;
use crate::model::parts::{GatedInner, GatedSpec};

/// What the forward pass saves; the input and activation(gate) · up are computed again.
#[derive(Clone, Debug)]
pub struct GatedTape<B: KernelBackend> {
    /// `[tokens, intermediate]`, unless DoRA's unscaled output is saved.
    gate: Option<Tensor<B, 2>>,
    /// `[tokens, intermediate]`, likewise.
    up: Option<Tensor<B, 2>>,
    /// activation(gate) · up, where the forward pass was run again: the backward pass, which follows, needs it.
    activated: Option<Tensor<B, 2>>,
    /// Of gate and up.
    inner: ProjectedTape<B>,
    /// Of down.
    down: ProjectedTape<B>,
}

/// block(x), `[tokens, hidden]`, as far as it is wanted.
pub(super) fn forward<B: KernelBackend>(
    spec: &GatedSpec,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    output: Output<'_, B>,
) -> (Option<Tensor<B, 2>>, GatedTape<B>) {
    let projected = project(x, &inner(spec, call), None);
    let tape = projected.tape;
    let [gate, up] = split(spec, projected.outputs.into_iter().map(Some).collect());
    let (Some(gate), Some(up)) = (gate, up) else { unreachable!("every output is there") };
    let activated = gated(spec.activation, &gate, &up);
    let (y, down) = output.of(&activated, call.adapted(&spec.down));
    let activated = Some(activated).filter(|_| y.is_none());
    let up_index = match spec.inner {
        GatedInner::Separate { .. } => 1,
        GatedInner::Fused(_) => 0,
    };
    let (gate, up) = (tape.saved(0, gate), tape.saved(up_index, up));
    (y, GatedTape { gate, up, activated, inner: tape, down })
}

/// Returns dL/dx, or `None` if it is not wanted. `x` is the forward's input, needed where gate or up have adapters.
pub(super) fn backward<B: KernelBackend>(
    spec: &GatedSpec,
    tape: GatedTape<B>,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    upstream: Upstream<'_, B>,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let GatedTape { gate, up, activated, inner: inner_tape, down } = tape;
    let layers = inner(spec, call);
    let [gate_again, up_again] = split(spec, inner_tape.all_scaled_again(&layers));
    let (Some(gate), Some(up)) = (gate.or(gate_again), up.or(up_again)) else {
        unreachable!("an output is saved, or scaled again")
    };
    let activated = activated.unwrap_or_else(|| gated(spec.activation, &gate, &up));
    let layer = call.adapted(&spec.down);
    let dactivated = project_backward_through(&activated, layer, down, upstream.dy, gradients);
    drop(activated);
    let (dgate, dup) = gated_backward(spec.activation, gate, up, dactivated);
    let dy = match spec.inner {
        GatedInner::Separate { .. } => vec![dgate, dup],
        GatedInner::Fused(_) => vec![Tensor::cat(vec![dgate, dup], 1)],
    };
    project_backward(x, &layers, inner_tape, dy, upstream.wants_x, gradients)
}

fn inner<'a, B: KernelBackend>(spec: &GatedSpec, call: &Call<'a, B>) -> Vec<Adapted<'a, B>> {
    spec.inner.projections().into_iter().map(|projection| call.adapted(projection)).collect()
}

/// Gate and up, `[tokens, intermediate]`, from the outputs of the projections.
fn split<B: KernelBackend>(
    spec: &GatedSpec,
    mut outputs: Vec<Option<Tensor<B, 2>>>,
) -> [Option<Tensor<B, 2>>; 2] {
    match spec.inner {
        GatedInner::Separate { .. } => {
            let up = outputs.pop().flatten();
            [outputs.pop().flatten(), up]
        }
        GatedInner::Fused(_) => {
            let both = outputs.pop().flatten();
            let width = spec.intermediate();
            [0, width].map(|start| both.as_ref().map(|both| both.clone().narrow(1, start, width)))
        }
    }
}
