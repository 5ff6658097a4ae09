//! The gated feed-forward block: down(silu(gate(x)) · up(x)).

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::gated::{Activation, gated, gated_backward};

use super::adapted::{ProjectedTape, project, project_backward};
use super::{Adapted, FrozenProjection};
use crate::adapter::projection::{LayerAdapters, LayerGradients, Projection};

/// Frozen weights of a feed-forward block.
#[derive(Clone, Debug)]
pub struct FeedForward<B: KernelBackend> {
    /// `[intermediate, hidden]`.
    pub gate: FrozenProjection<B>,
    /// `[intermediate, hidden]`.
    pub up: FrozenProjection<B>,
    /// `[hidden, intermediate]`.
    pub down: FrozenProjection<B>,
}

/// What the backward pass wants of the forward pass; the input and silu(gate) · up are computed again.
#[derive(Clone, Debug)]
pub struct FeedForwardTape<B: KernelBackend> {
    /// `[tokens, intermediate]`, unless it can be made again.
    gate: Option<Tensor<B, 2>>,
    /// `[tokens, intermediate]`, likewise.
    up: Option<Tensor<B, 2>>,
    /// Of gate and up.
    inner: ProjectedTape<B>,
    /// Of down.
    down: ProjectedTape<B>,
}

impl<B: KernelBackend> FeedForward<B> {
    /// `residual` + block(x), `[tokens, hidden]`.
    pub fn forward(
        &self,
        x: &Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        residual: &Tensor<B, 2>,
    ) -> (Tensor<B, 2>, FeedForwardTape<B>) {
        let mut inner = project(x, &self.inner(adapters), None);
        let (up, gate) = (inner.outputs.remove(1), inner.outputs.remove(0));
        let down = [self.down.with(adapters.down.as_ref())];
        let mut down = project(&gated(Activation::Silu, &gate, &up), &down, Some(residual));
        let (gate, up) = (inner.tape.keep(0, gate), inner.tape.keep(1, up));
        let tape = FeedForwardTape { gate, up, inner: inner.tape, down: down.tape };
        (down.outputs.remove(0), tape)
    }

    /// The gradient of x for the gradient `dy` of the block's output. `x` is the forward's input, computed again by
    /// the caller, and needed where gate or up have adapters.
    pub fn backward(
        &self,
        tape: FeedForwardTape<B>,
        x: &Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        dy: &Tensor<B, 2>,
        gradients: &mut LayerGradients<B>,
    ) -> Tensor<B, 2> {
        let FeedForwardTape { gate, up, inner, down } = tape;
        let [gate_layer, up_layer] = self.inner(adapters);
        let (gate, up) = (inner.output(0, gate_layer, gate), inner.output(1, up_layer, up));
        let activated = gated(Activation::Silu, &gate, &up);
        let layer = [(Projection::Down, self.down.with(adapters.down.as_ref()))];
        let found = project_backward(&activated, layer, down, [dy.clone()], true, gradients);
        drop(activated);
        let Some(activated_gradient) = found else { unreachable!("asked for") };
        let (dgate, dup) = gated_backward(Activation::Silu, gate, up, activated_gradient);
        let layers = [(Projection::Gate, gate_layer), (Projection::Up, up_layer)];
        match project_backward(x, layers, inner, [dgate, dup], true, gradients) {
            Some(dx) => dx,
            None => unreachable!("asked for"),
        }
    }

    fn inner<'a>(&'a self, adapters: &'a LayerAdapters<B>) -> [Adapted<'a, B>; 2] {
        [self.gate.with(adapters.gate.as_ref()), self.up.with(adapters.up.as_ref())]
    }
}
