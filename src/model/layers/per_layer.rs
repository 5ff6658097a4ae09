//! A layer's part of the embeddings by layer: projection(activation(gate(x)) · part). The part has no gradient: nothing that
//! it is made of is trained.

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::gated::{gated, gated_backward};

use super::adapted::{ProjectedTape, project_backward, project_backward_through, project_each};
use super::layer::{Call, Output, Upstream};
use crate::adapter::projection::LayerGradients;
use crate::model::parts::PerLayerInputSpec;

/// What the forward pass saves; the input and activation(gate) · part are computed again.
#[derive(Clone, Debug)]
pub struct PerLayerTape<B: KernelBackend> {
    /// `[tokens, width]`, unless DoRA's unscaled output is saved.
    gate: Option<Tensor<B, 2>>,
    /// Of the gate.
    inner: ProjectedTape<B>,
    /// Of the projection.
    output: ProjectedTape<B>,
}

/// block(x), `[tokens, hidden]`, as far as it is wanted.
pub(super) fn forward<B: KernelBackend>(
    spec: &PerLayerInputSpec,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    output: Output<'_, B>,
) -> (Option<Tensor<B, 2>>, PerLayerTape<B>) {
    let ([gate], inner) = project_each(x, &[call.adapted(&spec.gate)]);
    let activated = gated(spec.activation, &gate, &part(spec, call));
    let (y, output) = output.of(&activated, call.adapted(&spec.projection));
    (y, PerLayerTape { gate: inner.saved(0, gate), inner, output })
}

/// Returns dL/dx, or `None` if it is not wanted. `x` is the forward's input, computed again by the caller.
pub(super) fn backward<B: KernelBackend>(
    spec: &PerLayerInputSpec,
    tape: PerLayerTape<B>,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    upstream: Upstream<'_, B>,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let PerLayerTape { gate, inner, output } = tape;
    let layer = [call.adapted(&spec.gate)];
    let gate = inner.output(0, gate, &layer);
    let part = part(spec, call);
    let activated = gated(spec.activation, &gate, &part);
    let outer = call.adapted(&spec.projection);
    let dactivated = project_backward_through(&activated, outer, output, upstream.dy, gradients);
    drop(activated);
    let (dgate, _) = gated_backward(spec.activation, gate, part, dactivated);
    project_backward(x, &layer, inner, vec![dgate], upstream.wants_x, gradients)
}

/// What the layer is given, `[tokens, width]`.
fn part<B: KernelBackend>(spec: &PerLayerInputSpec, call: &Call<'_, B>) -> Tensor<B, 2> {
    let Some(parts) = &call.inputs.parts else {
        unreachable!("a decoder with such layers has parts for them")
    };
    parts.clone().narrow(1, spec.layer * spec.width(), spec.width())
}
