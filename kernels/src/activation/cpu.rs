//! Activations without a gate on the CPU, a run of elements per task.

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::{ActivationOps, DENSITY, ERF, Function, ROOT_HALF};
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{math, parallel, pool, tensor, vectorized};
use crate::gated::gelu_argument;

/// Elements per task.
const TASK: usize = 1 << 14;
/// Elementary operations an element costs, in the currency of `parallel`.
const COST: usize = 8;

impl ActivationOps for Flex {
    fn activation(function: Function, x: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        let shape = x.dims();
        let x = tensor::primitive(x.clone());
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let mut y = pool::take::<T>(x.len());
            let tasks = x.chunks(TASK).zip(y.chunks_mut(TASK)).collect();
            parallel::for_each(tasks, COST * x.len(), |(x, y)| match function {
                Function::Gelu => gelu::<T>(x, y),
                Function::GeluTanh => gelu_tanh::<T>(x, y),
                Function::ReluSquared => relu_squared::<T>(x, y),
            });
            tensor::from_buffer(y, shape)
        })
    }

    /// In place of `x`.
    fn activation_backward(function: Function, x: Tensor<Self, 2>, dy: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let (mut x, dy) = (tensor::owned(x), tensor::primitive(dy));
        with_float!(x.dtype(), T => {
            let (x, dy) = (x.storage_mut::<T>(), dy.storage::<T>());
            let tasks = x.chunks_mut(TASK).zip(dy.chunks(TASK)).collect();
            parallel::for_each(tasks, COST * dy.len(), |(x, dy)| match function {
                Function::Gelu => gelu_backward::<T>(x, dy),
                Function::GeluTanh => gelu_tanh_backward::<T>(x, dy),
                Function::ReluSquared => relu_squared_backward::<T>(x, dy),
            });
        });
        tensor::from_flex(x)
    }
}

/// Φ(x).
#[inline(always)]
fn normal(x: f32) -> f32 {
    let [p, first, second, third, fourth, fifth] = ERF;
    let z = x.abs() * ROOT_HALF;
    let t = 1.0 / (1.0 + p * z);
    let tail = t * (first + t * (second + t * (third + t * (fourth + t * fifth)))) * math::exp(-z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[inline(always)]
fn each<T: Scalar>(x: &[T], y: &mut [T], value: impl Fn(f32) -> f32) {
    for (x, y) in x.iter().zip(y) {
        *y = T::from_f32(value(x.to_f32()));
    }
}

#[inline(always)]
fn each_backward<T: Scalar>(x: &mut [T], dy: &[T], slope: impl Fn(f32) -> f32) {
    for (x, dy) in x.iter_mut().zip(dy) {
        *x = T::from_f32(dy.to_f32() * slope(x.to_f32()));
    }
}

vectorized! {
    fn gelu<T: Scalar>(x: &[T], y: &mut [T]) {
        each(x, y, |x| x * normal(x));
    }

    fn gelu_tanh<T: Scalar>(x: &[T], y: &mut [T]) {
        each(x, y, |x| x * math::sigmoid(gelu_argument(x).0));
    }

    fn relu_squared<T: Scalar>(x: &[T], y: &mut [T]) {
        each(x, y, |x| x.max(0.0) * x.max(0.0));
    }

    fn gelu_backward<T: Scalar>(x: &mut [T], dy: &[T]) {
        each_backward(x, dy, |x| {
            // Where the density is 0 in f32, x² could overflow.
            let near = x.clamp(-16.0, 16.0);
            normal(x) + near * DENSITY * math::exp(-0.5 * near * near)
        });
    }

    fn gelu_tanh_backward<T: Scalar>(x: &mut [T], dy: &[T]) {
        each_backward(x, dy, |x| {
            let (v, slope) = gelu_argument(x);
            let s = math::sigmoid(v);
            s * (1.0 + slope * (1.0 - s))
        });
    }

    fn relu_squared_backward<T: Scalar>(x: &mut [T], dy: &[T]) {
        each_backward(x, dy, |x| 2.0 * x.max(0.0));
    }
}
