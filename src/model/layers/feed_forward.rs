//! The gated feed-forward block: down(silu(gate(x)) · up(x)).

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::swiglu::swiglu;

use super::FrozenProjection;
use crate::adapter::projection::LayerAdapters;

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

impl<B: KernelBackend<Frozen = B>> FeedForward<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`.
    pub fn forward<T: KernelBackend<Frozen = B>>(
        &self,
        x: Tensor<T, 2>,
        adapters: &LayerAdapters<T>,
    ) -> Tensor<T, 2> {
        let gate = self.gate.forward(x.clone(), adapters.gate.as_ref());
        let up = self.up.forward(x, adapters.up.as_ref());
        self.down.forward(swiglu(gate, up), adapters.down.as_ref())
    }
}
