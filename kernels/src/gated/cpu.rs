//! The gated activation on the CPU, a run of elements per task.

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::{Activation, CLAMPED_FACTOR, CLAMPED_LIMIT, GatedOps, gelu_argument};
#[cfg(target_arch = "x86_64")]
use super::{GELU_CUBIC, GELU_LINEAR, GELU_SATURATED};
#[cfg(target_arch = "x86_64")]
use crate::cpu::fast;
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{math, parallel, pool, tensor, vectorized};

/// Elements per task.
const TASK: usize = 1 << 14;
/// Elementary operations an element costs, in the currency of `parallel`.
const COST: usize = 8;

impl GatedOps for Flex {
    fn gated(activation: Activation, gate: &Tensor<Self, 2>, up: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        let shape = gate.dims();
        let (gate, up) = (tensor::primitive(gate.clone()), tensor::primitive(up.clone()));
        with_float!(gate.dtype(), T => {
            let (gate, up) = (gate.storage::<T>(), up.storage::<T>());
            let mut y = pool::take::<T>(gate.len());
            let tasks = gate.chunks(TASK).zip(up.chunks(TASK)).zip(y.chunks_mut(TASK)).collect();
            parallel::for_each(tasks, COST * gate.len(), |((gate, up), y)| {
                forward_run::<T>(activation, gate, up, y);
            });
            tensor::from_buffer(y, shape)
        })
    }

    /// In place of gate and up.
    fn gated_backward(
        activation: Activation,
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let (mut gate, mut up, dy) = (tensor::owned(gate), tensor::owned(up), tensor::primitive(dy));
        with_float!(gate.dtype(), T => {
            let (gate, up, dy) = (gate.storage_mut::<T>(), up.storage_mut::<T>(), dy.storage::<T>());
            let tasks = gate.chunks_mut(TASK).zip(up.chunks_mut(TASK)).zip(dy.chunks(TASK)).collect();
            parallel::for_each(tasks, COST * dy.len(), |((gate, up), dy)| {
                backward_run::<T>(activation, gate, up, dy);
            });
        });
        (tensor::from_flex(gate), tensor::from_flex(up))
    }
}

fn forward_run<T: Scalar>(activation: Activation, gate: &[T], up: &[T], y: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    if fast::available() {
        return match activation {
            // SAFETY: asked just before.
            Activation::Silu => unsafe { fast::silu_gated(gate, up, y) },
            // SAFETY: as above.
            Activation::GeluTanh => unsafe { fast::gelu_gated(gate, up, y, GELU) },
            Activation::Sigmoid => sigmoid::<T>(gate, up, y),
            Activation::Clamped => clamped::<T>(gate, up, y),
        };
    }
    match activation {
        Activation::Silu => silu::<T>(gate, up, y),
        Activation::GeluTanh => gelu::<T>(gate, up, y),
        Activation::Sigmoid => sigmoid::<T>(gate, up, y),
        Activation::Clamped => clamped::<T>(gate, up, y),
    }
}

/// Turns gate and up into their gradients.
fn backward_run<T: Scalar>(activation: Activation, gate: &mut [T], up: &mut [T], dy: &[T]) {
    #[cfg(target_arch = "x86_64")]
    if fast::available() {
        return match activation {
            // SAFETY: asked just before.
            Activation::Silu => unsafe { fast::silu_gated_backward(gate, up, dy) },
            // SAFETY: as above.
            Activation::GeluTanh => unsafe { fast::gelu_gated_backward(gate, up, dy, GELU) },
            Activation::Sigmoid => sigmoid_backward::<T>(gate, up, dy),
            Activation::Clamped => clamped_backward::<T>(gate, up, dy),
        };
    }
    match activation {
        Activation::Silu => silu_backward::<T>(gate, up, dy),
        Activation::GeluTanh => gelu_backward::<T>(gate, up, dy),
        Activation::Sigmoid => sigmoid_backward::<T>(gate, up, dy),
        Activation::Clamped => clamped_backward::<T>(gate, up, dy),
    }
}

/// GELU's constants, as the functions by hand take them.
#[cfg(target_arch = "x86_64")]
const GELU: [f32; 3] = [GELU_LINEAR, GELU_CUBIC, GELU_SATURATED];

/// SiLU's v, and gate · v′.
#[inline(always)]
fn silu_argument(x: f32) -> (f32, f32) {
    (x, x)
}

#[inline(always)]
fn forward_each<T: Scalar>(gate: &[T], up: &[T], y: &mut [T], argument: impl Fn(f32) -> (f32, f32)) {
    for ((gate, up), y) in gate.iter().zip(up).zip(y) {
        let x = gate.to_f32();
        *y = T::from_f32(x * math::sigmoid(argument(x).0) * up.to_f32());
    }
}

#[inline(always)]
fn backward_each<T: Scalar>(gate: &mut [T], up: &mut [T], dy: &[T], argument: impl Fn(f32) -> (f32, f32)) {
    for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
        let (x, dy) = (gate.to_f32(), dy.to_f32());
        let (v, slope) = argument(x);
        let s = math::sigmoid(v);
        *gate = T::from_f32(dy * up.to_f32() * s * (1.0 + slope * (1.0 - s)));
        *up = T::from_f32(dy * x * s);
    }
}

vectorized! {
    fn silu<T: Scalar>(gate: &[T], up: &[T], y: &mut [T]) {
        forward_each(gate, up, y, silu_argument);
    }

    fn gelu<T: Scalar>(gate: &[T], up: &[T], y: &mut [T]) {
        forward_each(gate, up, y, gelu_argument);
    }

    fn sigmoid<T: Scalar>(gate: &[T], up: &[T], y: &mut [T]) {
        for ((gate, up), y) in gate.iter().zip(up).zip(y) {
            *y = T::from_f32(math::sigmoid(gate.to_f32()) * up.to_f32());
        }
    }

    fn sigmoid_backward<T: Scalar>(gate: &mut [T], up: &mut [T], dy: &[T]) {
        for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
            let (s, dy) = (math::sigmoid(gate.to_f32()), dy.to_f32());
            *gate = T::from_f32(dy * up.to_f32() * s * (1.0 - s));
            *up = T::from_f32(dy * s);
        }
    }

    fn clamped<T: Scalar>(gate: &[T], up: &[T], y: &mut [T]) {
        for ((gate, up), y) in gate.iter().zip(up).zip(y) {
            let x = gate.to_f32().min(CLAMPED_LIMIT);
            let factor = 1.0 + up.to_f32().clamp(-CLAMPED_LIMIT, CLAMPED_LIMIT);
            *y = T::from_f32(x * math::sigmoid(CLAMPED_FACTOR * x) * factor);
        }
    }

    fn clamped_backward<T: Scalar>(gate: &mut [T], up: &mut [T], dy: &[T]) {
        for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
            let (g, u, dy) = (gate.to_f32(), up.to_f32(), dy.to_f32());
            let x = g.min(CLAMPED_LIMIT);
            let factor = 1.0 + u.clamp(-CLAMPED_LIMIT, CLAMPED_LIMIT);
            let s = math::sigmoid(CLAMPED_FACTOR * x);
            let dgate = if g > CLAMPED_LIMIT { 0.0 } else { dy * factor * s * (1.0 + CLAMPED_FACTOR * x * (1.0 - s)) };
            let dup = if u.abs() > CLAMPED_LIMIT { 0.0 } else { dy * x * s };
            *gate = T::from_f32(dgate);
            *up = T::from_f32(dup);
        }
    }

    fn silu_backward<T: Scalar>(gate: &mut [T], up: &mut [T], dy: &[T]) {
        backward_each(gate, up, dy, silu_argument);
    }

    fn gelu_backward<T: Scalar>(gate: &mut [T], up: &mut [T], dy: &[T]) {
        backward_each(gate, up, dy, gelu_argument);
    }
}
