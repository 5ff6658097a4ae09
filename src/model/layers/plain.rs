//! The feed-forward block without a gate: down(function(up(x))).

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::activation::{activation, activation_backward};

use super::adapted::{ProjectedTape, project_backward, project_backward_through, project_each};
use super::layer::{Call, Output, Upstream};
use crate::adapter::projection::LayerGradients;
use crate::model::parts::PlainSpec;

/// What the forward pass saves; the input and function(up) are computed again.
#[derive(Clone, Debug)]
pub struct PlainTape<B: KernelBackend> {
    /// `[tokens, intermediate]`, unless DoRA's unscaled output is saved.
    up: Option<Tensor<B, 2>>,
    /// function(up), where the forward pass was run again: the backward pass, which follows, needs it.
    activated: Option<Tensor<B, 2>>,
    /// Of up.
    inner: ProjectedTape<B>,
    /// Of down.
    down: ProjectedTape<B>,
}

/// block(x), `[tokens, hidden]`, as far as it is wanted.
pub(super) fn forward<B: KernelBackend>(
    spec: &PlainSpec,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    output: Output<'_, B>,
) -> (Option<Tensor<B, 2>>, PlainTape<B>) {
    let ([up], inner) = project_each(x, &[call.adapted(&spec.up)]);
    let activated = activation(spec.function, &up);
    let (y, down) = output.of(&activated, call.adapted(&spec.down));
    let activated = Some(activated).filter(|_| y.is_none());
    let up = inner.saved(0, up);
    (y, PlainTape { up, activated, inner, down })
}

/// Returns dL/dx, or `None` if it is not wanted. `x` is the forward's input, needed where up has an adapter.
pub(super) fn backward<B: KernelBackend>(
    spec: &PlainSpec,
    tape: PlainTape<B>,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    upstream: Upstream<'_, B>,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let PlainTape { up, activated, inner, down } = tape;
    let layers = [call.adapted(&spec.up)];
    let up = inner.output(0, up, &layers);
    let activated = activated.unwrap_or_else(|| activation(spec.function, &up));
    let layer = call.adapted(&spec.down);
    let dactivated = project_backward_through(&activated, layer, down, upstream.dy, gradients);
    drop(activated);
    let dup = activation_backward(spec.function, up, dactivated);
    project_backward(x, &layers, inner, vec![dup], upstream.wants_x, gradients)
}
