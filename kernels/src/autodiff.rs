//! `Autodiff<B>` as a [`KernelBackend`]: each op is one node of the graph. Owns what the ops' `autodiff.rs` share
//! and the delegation; the nodes themselves live beside their ops.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Tensor, TensorPrimitive};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::ops::{Backward, OpsKind};

use crate::adamw::{AdamWConfig, Moments};
use crate::attention::{AttentionBackward, AttentionOptions};
use crate::backend::KernelBackend;
use crate::linear::{FrozenWeight, LinearBackward, LinearGradients, Lora};
use crate::nf4::Nf4Weight;
use crate::rope::RotaryTable;
use crate::{adamw, attention, linear, linear_cross_entropy, rms_norm, rope, swiglu};

/// The primitive of a float tensor.
pub(crate) fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A tensor around its primitive.
pub(crate) fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Puts `y` into the graph as the child of `parents`; `state` is made only if one of them is tracked.
pub(crate) fn record<B, C, S, const N: usize, const D: usize>(
    step: S,
    parents: [FloatTensor<Autodiff<B, C>>; N],
    state: impl FnOnce() -> S::State,
    y: Tensor<B, D>,
) -> Tensor<Autodiff<B, C>, D>
where
    B: Backend,
    C: CheckpointStrategy,
    S: Backward<B, N>,
{
    let y = primitive(y);
    // Compute-bound: burn is not to recompute it; the trainer decides that layer by layer.
    wrap(match step.prepare::<C>(parents.map(|parent| parent.node)).compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish(state(), y),
        OpsKind::UnTracked(step) => step.finish(y),
    })
}

impl<B: KernelBackend<Frozen = B>, C: CheckpointStrategy> KernelBackend for Autodiff<B, C> {
    type Frozen = B;

    fn frozen_linear(
        x: Tensor<Self, 2>,
        weight: &FrozenWeight<B>,
        bias: Option<&Tensor<B, 1>>,
        lora: Option<&Lora<Self>>,
    ) -> Tensor<Self, 2> {
        linear::autodiff::forward(x, weight, bias, lora)
    }

    fn rms_norm(x: Tensor<Self, 2>, weight: &Tensor<B, 1>, epsilon: f64) -> Tensor<Self, 2> {
        rms_norm::autodiff::forward(x, weight, epsilon)
    }

    fn rope(x: Tensor<Self, 3>, table: &RotaryTable<B>, position_ids: &Tensor<B, 1, Int>) -> Tensor<Self, 3> {
        rope::autodiff::forward(x, table, position_ids)
    }

    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        swiglu::autodiff::forward(gate, up)
    }

    fn document_attention(
        q: Tensor<Self, 3>,
        k: Tensor<Self, 3>,
        v: Tensor<Self, 3>,
        options: &AttentionOptions,
    ) -> Tensor<Self, 3> {
        attention::autodiff::forward(q, k, v, options)
    }

    fn linear_cross_entropy(
        hidden: Tensor<Self, 2>,
        head: &FrozenWeight<B>,
        targets: &Tensor<B, 1, Int>,
    ) -> Tensor<Self, 1> {
        linear_cross_entropy::autodiff::forward(hidden, head, targets)
    }

    fn adamw(
        parameter: Tensor<Self, 2>,
        gradient: Tensor<Self, 2>,
        moments: Moments<Self>,
        config: &AdamWConfig,
        learning_rate: f64,
        step: u64,
    ) -> (Tensor<Self, 2>, Moments<Self>) {
        adamw::autodiff::update(parameter, gradient, moments, config, learning_rate, step)
    }

    fn sum_of_squares(tensor: &Tensor<Self, 2>) -> f64 {
        B::sum_of_squares(&tensor.clone().inner())
    }

    fn nf4_dequantize(weight: &Nf4Weight<B>) -> Tensor<B, 2> {
        B::nf4_dequantize(weight)
    }

    fn linear_backward(request: LinearBackward<B>, dy: Tensor<B, 2>) -> LinearGradients<B> {
        B::linear_backward(request, dy)
    }

    fn rms_norm_backward(
        x: Tensor<B, 2>,
        weight: &Tensor<B, 1>,
        epsilon: f64,
        dy: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        B::rms_norm_backward(x, weight, epsilon, dy)
    }

    fn rope_backward(
        table: &RotaryTable<B>,
        position_ids: &Tensor<B, 1, Int>,
        dy: Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        B::rope_backward(table, position_ids, dy)
    }

    fn swiglu_backward(
        gate: Tensor<B, 2>,
        up: Tensor<B, 2>,
        dy: Tensor<B, 2>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        B::swiglu_backward(gate, up, dy)
    }

    fn attention_with_log_sum_exp(
        q: Tensor<B, 3>,
        k: Tensor<B, 3>,
        v: Tensor<B, 3>,
        options: &AttentionOptions,
    ) -> (Tensor<B, 3>, Tensor<B, 2>) {
        B::attention_with_log_sum_exp(q, k, v, options)
    }

    fn attention_backward(request: AttentionBackward<B>, dy: Tensor<B, 3>) -> [Tensor<B, 3>; 3] {
        B::attention_backward(request, dy)
    }

    fn linear_cross_entropy_with_gradient(
        hidden: Tensor<B, 2>,
        head: &FrozenWeight<B>,
        targets: &Tensor<B, 1, Int>,
    ) -> (Tensor<B, 1>, Tensor<B, 2>) {
        B::linear_cross_entropy_with_gradient(hidden, head, targets)
    }
}
