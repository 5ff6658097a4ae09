//! The gated activation on the CPU, a run of elements per task.

use burn::tensor::Tensor;
use burn_flex::Flex;

use super::SwigluOps;
#[cfg(target_arch = "x86_64")]
use crate::cpu::fast;
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{math, parallel, pool, tensor, vectorized};

/// Elements per task.
const TASK: usize = 1 << 14;
/// Elementary operations an element costs, in the currency of `parallel`.
const COST: usize = 8;

impl SwigluOps for Flex {
    fn swiglu(gate: &Tensor<Flex, 2>, up: &Tensor<Flex, 2>) -> Tensor<Flex, 2> {
        let shape = gate.dims();
        let (gate, up) = (tensor::primitive(gate.clone()), tensor::primitive(up.clone()));
        with_float!(gate.dtype(), T => {
            let (gate, up) = (gate.storage::<T>(), up.storage::<T>());
            let mut y = pool::take::<T>(gate.len());
            let tasks = gate.chunks(TASK).zip(up.chunks(TASK)).zip(y.chunks_mut(TASK)).collect();
            parallel::for_each(tasks, COST * gate.len(), |((gate, up), y)| forward_run::<T>(gate, up, y));
            tensor::from_buffer(y, shape)
        })
    }

    fn swiglu_backward(
        gate: Tensor<Flex, 2>,
        up: Tensor<Flex, 2>,
        dy: Tensor<Flex, 2>,
    ) -> (Tensor<Flex, 2>, Tensor<Flex, 2>) {
        let (mut gate, mut up, dy) = (tensor::owned(gate), tensor::owned(up), tensor::primitive(dy));
        with_float!(gate.dtype(), T => {
            let (gate, up, dy) = (gate.storage_mut::<T>(), up.storage_mut::<T>(), dy.storage::<T>());
            let tasks = gate.chunks_mut(TASK).zip(up.chunks_mut(TASK)).zip(dy.chunks(TASK)).collect();
            parallel::for_each(tasks, COST * dy.len(), |((gate, up), dy)| backward_run::<T>(gate, up, dy));
        });
        (tensor::from_flex(gate), tensor::from_flex(up))
    }
}

fn forward_run<T: Scalar>(gate: &[T], up: &[T], y: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    if fast::available() {
        // SAFETY: asked just before.
        return unsafe { fast::swiglu(gate, up, y) };
    }
    plain_forward::<T>(gate, up, y);
}

/// Turns gate and up into their gradients.
fn backward_run<T: Scalar>(gate: &mut [T], up: &mut [T], dy: &[T]) {
    #[cfg(target_arch = "x86_64")]
    if fast::available() {
        // SAFETY: asked just before.
        return unsafe { fast::swiglu_backward(gate, up, dy) };
    }
    plain_backward::<T>(gate, up, dy);
}

vectorized! {
    fn plain_forward<T: Scalar>(gate: &[T], up: &[T], y: &mut [T]) {
        for ((gate, up), y) in gate.iter().zip(up).zip(y) {
            let x = gate.to_f32();
            *y = T::from_f32(x * math::sigmoid(x) * up.to_f32());
        }
    }

    fn plain_backward<T: Scalar>(gate: &mut [T], up: &mut [T], dy: &[T]) {
        for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
            let (x, dy) = (gate.to_f32(), dy.to_f32());
            let s = math::sigmoid(x);
            *gate = T::from_f32(dy * up.to_f32() * s * (1.0 + x * (1.0 - s)));
            *up = T::from_f32(dy * x * s);
        }
    }
}
