//! burn-flex, the CPU, as a [`KernelBackend`]: pure delegation to the ops' `cpu.rs`.

use burn::tensor::{Int, Tensor};
use burn_flex::Flex;

use crate::adamw::{AdamWConfig, Moments};
use crate::attention::{AttentionBackward, AttentionOptions};
use crate::backend::KernelBackend;
use crate::linear::{FrozenWeight, LinearBackward, LinearGradients, Lora};
use crate::nf4::Nf4Weight;
use crate::rope::RotaryTable;
use crate::{adamw, attention, linear, linear_cross_entropy, nf4, rms_norm, rope, swiglu};

impl KernelBackend for Flex {
    type Frozen = Self;

    fn frozen_linear(
        x: Tensor<Self, 2>,
        weight: &FrozenWeight<Self>,
        bias: Option<&Tensor<Self, 1>>,
        lora: Option<&Lora<Self>>,
    ) -> Tensor<Self, 2> {
        linear::cpu::forward(x, weight, bias, lora)
    }

    fn rms_norm(x: Tensor<Self, 2>, weight: &Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        rms_norm::cpu::forward(x, weight, epsilon)
    }

    fn rope(
        x: Tensor<Self, 3>,
        table: &RotaryTable<Self>,
        position_ids: &Tensor<Self, 1, Int>,
    ) -> Tensor<Self, 3> {
        rope::cpu::rotate(x, table, position_ids, rope::cpu::Direction::Forward)
    }

    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        swiglu::cpu::forward(gate, up)
    }

    fn document_attention(
        q: Tensor<Self, 3>,
        k: Tensor<Self, 3>,
        v: Tensor<Self, 3>,
        options: &AttentionOptions,
    ) -> Tensor<Self, 3> {
        attention::cpu::forward(q, k, v, options).0
    }

    fn linear_cross_entropy(
        hidden: Tensor<Self, 2>,
        head: &FrozenWeight<Self>,
        targets: &Tensor<Self, 1, Int>,
    ) -> Tensor<Self, 1> {
        linear_cross_entropy::cpu::loss(hidden, head, targets)
    }

    fn adamw(
        parameter: Tensor<Self, 2>,
        gradient: Tensor<Self, 2>,
        moments: Moments<Self>,
        config: &AdamWConfig,
        learning_rate: f64,
        step: u64,
    ) -> (Tensor<Self, 2>, Moments<Self>) {
        adamw::cpu::update(parameter, gradient, moments, config, learning_rate, step)
    }

    fn sum_of_squares(tensor: &Tensor<Self, 2>) -> f64 {
        adamw::cpu::sum_of_squares(tensor)
    }

    fn nf4_dequantize(weight: &Nf4Weight<Self>) -> Tensor<Self, 2> {
        nf4::cpu::dequantize(weight)
    }

    fn linear_backward(request: LinearBackward<Self>, dy: Tensor<Self, 2>) -> LinearGradients<Self> {
        linear::cpu::backward(request, dy)
    }

    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        epsilon: f64,
        dy: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        rms_norm::cpu::backward(x, weight, epsilon, dy)
    }

    fn rope_backward(
        table: &RotaryTable<Self>,
        position_ids: &Tensor<Self, 1, Int>,
        dy: Tensor<Self, 3>,
    ) -> Tensor<Self, 3> {
        rope::cpu::rotate(dy, table, position_ids, rope::cpu::Direction::Backward)
    }

    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        swiglu::cpu::backward(gate, up, dy)
    }

    fn attention_with_log_sum_exp(
        q: Tensor<Self, 3>,
        k: Tensor<Self, 3>,
        v: Tensor<Self, 3>,
        options: &AttentionOptions,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        attention::cpu::forward(q, k, v, options)
    }

    fn attention_backward(request: AttentionBackward<Self>, dy: Tensor<Self, 3>) -> [Tensor<Self, 3>; 3] {
        attention::cpu::backward(request, dy)
    }

    fn linear_cross_entropy_with_gradient(
        hidden: Tensor<Self, 2>,
        head: &FrozenWeight<Self>,
        targets: &Tensor<Self, 1, Int>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        linear_cross_entropy::cpu::loss_and_gradient(hidden, head, targets)
    }
}
