//! Every GPU as a [`KernelBackend`]: pure delegation to the ops' `cube.rs`, which are generic over CubeCL's runtimes
//! (CUDA, Vulkan, Metal).
//!
//! Kernels are launched in the order of their calls and run later; no op waits for the device. Whatever a kernel adds up,
//! it adds up in an order that depends on shapes alone: the same call on the same device gives the same bits.

pub(crate) mod convert;
mod in_step;
mod operand;
mod plain;
pub(crate) mod product;
mod read;
pub(crate) mod reduce;
pub(crate) mod tensor;
mod watch;

use burn::tensor::{Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use crate::adamw::{AdamWConfig, Guard, Moments, Update};
use crate::attention::{AttentionBackward, AttentionOptions};
use crate::backend::{KernelBackend, Reading};
use crate::linear::{FrozenWeight, Linear, LinearBackward, LinearGradients, Projected};
use crate::linear_cross_entropy::{LossAndGradient, Supervised};
use crate::memory::DeviceMemory;
use crate::nf4::Nf4Weight;
use crate::rope::{Direction, RotaryTable};
use crate::{adamw, attention, linear, linear_cross_entropy, nf4, rms_norm, rope, swiglu};
use tensor::{float, int, into_float, wrap};

impl<R, F, I, T> KernelBackend for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn frozen_linear(
        x: &Tensor<Self, 2>,
        layers: &[Linear<'_, Self>],
        residual: Option<&Tensor<Self, 2>>,
    ) -> Projected<Self> {
        linear::cube::forward(x, layers, residual)
    }

    fn frozen_linear_backward(request: LinearBackward<'_, Self>) -> LinearGradients<Self> {
        linear::cube::backward(request)
    }

    fn rms_norm(x: &Tensor<Self, 2>, weight: &Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        wrap(rms_norm::cube::forward(&float(x), &float(weight), epsilon))
    }

    fn rms_norm_backward(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        epsilon: f64,
        dy: Tensor<Self, 2>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        let residual = residual.map(float);
        let dy = into_float(dy);
        wrap(rms_norm::cube::backward(&float(x), &float(weight), epsilon, &dy, residual.as_ref()))
    }

    fn rope<const N: usize>(
        x: [Tensor<Self, 3>; N],
        table: &RotaryTable<Self>,
        position_ids: &Tensor<Self, 1, Int>,
        direction: Direction,
    ) -> [Tensor<Self, 3>; N] {
        let (cos, sin) = (float(&table.cos), float(&table.sin));
        rope::cube::rotate(x.map(into_float), &cos, &sin, &int(position_ids), direction).map(wrap)
    }

    fn swiglu(gate: &Tensor<Self, 2>, up: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        wrap(swiglu::cube::forward(&float(gate), &float(up)))
    }

    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let (dgate, dup) = swiglu::cube::backward(into_float(gate), into_float(up), &into_float(dy));
        (wrap(dgate), wrap(dup))
    }

    fn document_attention(
        q: &Tensor<Self, 3>,
        k: &Tensor<Self, 3>,
        v: &Tensor<Self, 3>,
        options: &AttentionOptions,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        let (output, log_sum_exp) = attention::cube::forward(&float(q), &float(k), &float(v), options);
        (wrap(output), wrap(log_sum_exp))
    }

    fn document_attention_backward(request: AttentionBackward<'_, Self>) -> [Tensor<Self, 3>; 3] {
        let AttentionBackward { q, k, v, output, log_sum_exp, options, dy } = request;
        let tensors = attention::cube::Saved {
            q: float(q),
            k: float(k),
            v: float(v),
            output: float(output),
            log_sum_exp: float(log_sum_exp),
            dy: float(dy),
        };
        attention::cube::backward(&tensors, options).map(wrap)
    }

    fn linear_cross_entropy(
        hidden: &Tensor<Self, 2>,
        head: &FrozenWeight<Self>,
        supervised: &[Supervised],
        wants_gradient: bool,
    ) -> LossAndGradient<Self> {
        linear_cross_entropy::cube::loss_and_gradient(hidden, head, supervised, wants_gradient)
    }

    fn adamw(
        updates: Vec<Update<Self>>,
        guard: &Guard<Self>,
        config: &AdamWConfig,
        learning_rate: f64,
        step: u64,
    ) -> Vec<(Tensor<Self, 2>, Moments<Self>)> {
        let factors = adamw::Factors::new(config, learning_rate, step);
        let factor = adamw::cube::gradient_factor(&float(&guard.numbers), guard.scale, guard.max_norm);
        let trained = |Update { parameter, gradient, moments }: Update<Self>| adamw::cube::Trained {
            parameter: into_float(parameter),
            gradient: gradient.map(into_float),
            moments: [into_float(moments.first), into_float(moments.second)],
        };
        let updated = |(parameter, [first, second]): (CubeTensor<R>, [CubeTensor<R>; 2])| {
            (wrap(parameter), Moments { first: wrap(first), second: wrap(second) })
        };
        let trained = updates.into_iter().map(trained).collect();
        adamw::cube::update(trained, &factor, factors).into_iter().map(updated).collect()
    }

    fn norm(tensors: &[&Tensor<Self, 2>]) -> Tensor<Self, 1> {
        let tensors: Vec<_> = tensors.iter().map(|tensor| float(tensor)).collect();
        wrap(adamw::cube::norm(&tensors))
    }

    fn read_later(numbers: Tensor<Self, 1>) -> Reading {
        read::later(into_float(numbers))
    }

    fn nf4_dequantize(weight: &Nf4Weight<Self>) -> Tensor<Self, 2> {
        let weight = nf4::cube::Nf4Tensors::new(weight);
        wrap(nf4::cube::dequantize(&weight, burn::tensor::DType::F32))
    }

    fn device_memory(device: &Self::Device) -> Option<DeviceMemory> {
        crate::gpu::usage::<R>(device)
    }

    fn peak_memory<W>(work: impl FnOnce() -> W) -> (W, Option<DeviceMemory>) {
        watch::watched(work)
    }
}
