//! burn-flex, the CPU, as a [`KernelBackend`]: pure delegation to the ops' `cpu.rs`.

use burn::tensor::{Int, Tensor};
use burn_flex::Flex;

use crate::adamw::{AdamWConfig, Guard, Moments, Update};
use crate::attention::{AttentionBackward, AttentionOptions};
use crate::backend::KernelBackend;
use crate::cpu::parallel;
use crate::linear::{FrozenWeight, Linear, LinearBackward, LinearGradients, Projected};
use crate::linear_cross_entropy::{LossAndGradient, Supervised};
use crate::nf4::Nf4Weight;
use crate::rope::{Direction, RotaryTable};
use crate::{adamw, attention, column_scale, linear, linear_cross_entropy, nf4, rms_norm, rope, swiglu};

impl KernelBackend for Flex {
    fn frozen_linear(
        x: &Tensor<Self, 2>,
        layers: &[Linear<'_, Self>],
        residual: Option<&Tensor<Self, 2>>,
    ) -> Projected<Self> {
        linear::cpu::forward(x, layers, residual)
    }

    fn frozen_linear_backward(request: LinearBackward<'_, Self>) -> LinearGradients<Self> {
        linear::cpu::backward(request)
    }

    fn column_scale(
        u: &Tensor<Self, 2>,
        factors: &Tensor<Self, 2>,
        bias: Option<&Tensor<Self, 1>>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        column_scale::cpu::forward(u, factors, bias, residual)
    }

    fn column_scale_backward(
        u: &Tensor<Self, 2>,
        factors: &Tensor<Self, 2>,
        dy: &Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        column_scale::cpu::backward(u, factors, dy)
    }

    fn rms_norm(x: &Tensor<Self, 2>, weight: &Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        rms_norm::cpu::forward(x, weight, epsilon)
    }

    fn rms_norm_backward(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        epsilon: f64,
        dy: Tensor<Self, 2>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        rms_norm::cpu::backward(x, weight, epsilon, dy, residual)
    }

    fn rope<const N: usize>(
        x: [Tensor<Self, 3>; N],
        table: &RotaryTable<Self>,
        position_ids: &Tensor<Self, 1, Int>,
        direction: Direction,
    ) -> [Tensor<Self, 3>; N] {
        x.map(|x| rope::cpu::rotate(x, table, position_ids, direction))
    }

    fn swiglu(gate: &Tensor<Self, 2>, up: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        swiglu::cpu::forward(gate, up)
    }

    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        swiglu::cpu::backward(gate, up, dy)
    }

    fn document_attention(
        q: &Tensor<Self, 3>,
        k: &Tensor<Self, 3>,
        v: &Tensor<Self, 3>,
        options: &AttentionOptions,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        attention::cpu::forward(q, k, v, options)
    }

    fn document_attention_backward(request: AttentionBackward<'_, Self>) -> [Tensor<Self, 3>; 3] {
        attention::cpu::backward(request)
    }

    fn linear_cross_entropy(
        hidden: &Tensor<Self, 2>,
        head: &FrozenWeight<Self>,
        supervised: &[Supervised],
        wants_gradient: bool,
    ) -> LossAndGradient<Self> {
        linear_cross_entropy::cpu::loss_and_gradient(hidden, head, supervised, wants_gradient)
    }

    fn adamw(
        updates: Vec<Update<Self>>,
        guard: &Guard<Self>,
        config: &AdamWConfig,
        learning_rate: f64,
        step: u64,
    ) -> Vec<(Tensor<Self, 2>, Moments<Self>)> {
        adamw::cpu::update(updates, guard, config, learning_rate, step)
    }

    fn norm(tensors: &[&Tensor<Self, 2>]) -> Tensor<Self, 1> {
        adamw::cpu::norm(tensors)
    }

    fn nf4_dequantize(weight: &Nf4Weight<Self>) -> Tensor<Self, 2> {
        nf4::cpu::dequantize(weight)
    }

    fn on_workers<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        parallel::on_workers(work)
    }
}
