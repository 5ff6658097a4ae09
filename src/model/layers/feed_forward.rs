//! The gated feed-forward block: down(silu(gate(x)) · up(x)).

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear::{LinearBackward, linear, linear_backward};
use tune_kernels::swiglu::{swiglu, swiglu_backward};

use super::FrozenProjection;
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
    /// `[tokens, intermediate]`.
    gate: Tensor<B, 2>,
    /// `[tokens, intermediate]`.
    up: Tensor<B, 2>,
    /// x̃ Aᵀ of gate and up, `[tokens, Σ rank]`.
    inner_ranks: Option<Tensor<B, 2>>,
    /// The same of down.
    down_ranks: Option<Tensor<B, 2>>,
}

impl<B: KernelBackend> FeedForward<B> {
    /// `residual` + block(x), `[tokens, hidden]`.
    pub fn forward(
        &self,
        x: &Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        residual: &Tensor<B, 2>,
    ) -> (Tensor<B, 2>, FeedForwardTape<B>) {
        let layers = [self.gate.with(adapters.gate.as_ref()), self.up.with(adapters.up.as_ref())];
        let mut inner = linear(x, &layers, None);
        let (up, gate) = (inner.outputs.remove(1), inner.outputs.remove(0));
        let mut down = linear(&swiglu(&gate, &up), &[self.down.with(adapters.down.as_ref())], Some(residual));
        let tape = FeedForwardTape { gate, up, inner_ranks: inner.down, down_ranks: down.down };
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
        let FeedForwardTape { gate, up, inner_ranks, down_ranks } = tape;
        let inner = swiglu(&gate, &up);
        let down = linear_backward(LinearBackward {
            x: Some(&inner),
            layers: &[self.down.with(adapters.down.as_ref())],
            down: down_ranks.as_ref(),
            dy: std::slice::from_ref(dy),
            wants_x: true,
            sums: gradients.take([Projection::Down]),
        });
        drop((inner, down_ranks));
        gradients.put([Projection::Down], down.adapters);
        let Some(inner_gradient) = down.x else { unreachable!("asked for") };
        let (dgate, dup) = swiglu_backward(gate, up, inner_gradient);
        let both = [Projection::Gate, Projection::Up];
        let inner = linear_backward(LinearBackward {
            x: Some(x),
            layers: &[self.gate.with(adapters.gate.as_ref()), self.up.with(adapters.up.as_ref())],
            down: inner_ranks.as_ref(),
            dy: &[dgate, dup],
            wants_x: true,
            sums: gradients.take(both),
        });
        gradients.put(both, inner.adapters);
        match inner.x {
            Some(dx) => dx,
            None => unreachable!("asked for"),
        }
    }
}
