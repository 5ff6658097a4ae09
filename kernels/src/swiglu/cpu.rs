//! The gated activation on the CPU, a run of elements per task.

use burn::tensor::Tensor;
use burn_flex::Flex;

use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{math, parallel, tensor, vectorized};

/// Elements per task.
const TASK: usize = 1 << 14;
/// Elementary operations an element costs, in the currency of `parallel`.
const COST: usize = 8;

/// `swiglu` of the CPU backend.
pub(crate) fn forward(gate: Tensor<Flex, 2>, up: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let shape = gate.dims();
    let (gate, up) = (tensor::primitive(gate), tensor::primitive(up));
    with_float!(gate.dtype(), T => {
        let (gate, up) = (gate.storage::<T>(), up.storage::<T>());
        let mut y = vec![<T as Scalar>::from_f32(0.0); gate.len()];
        let tasks = gate.chunks(TASK).zip(up.chunks(TASK)).zip(y.chunks_mut(TASK)).collect();
        parallel::for_each(tasks, COST * gate.len(), |((gate, up), y)| forward_run::<T>(gate, up, y));
        tensor::from_vec(y, shape)
    })
}

/// `swiglu_backward` of the CPU backend.
pub(crate) fn backward(
    gate: Tensor<Flex, 2>,
    up: Tensor<Flex, 2>,
    dy: Tensor<Flex, 2>,
) -> (Tensor<Flex, 2>, Tensor<Flex, 2>) {
    let shape = gate.dims();
    let (gate, up, dy) = (tensor::primitive(gate), tensor::primitive(up), tensor::primitive(dy));
    with_float!(gate.dtype(), T => {
        let (gate, up, dy) = (gate.storage::<T>(), up.storage::<T>(), dy.storage::<T>());
        let mut dgate = vec![<T as Scalar>::from_f32(0.0); gate.len()];
        let mut dup = dgate.clone();
        let inputs = gate.chunks(TASK).zip(up.chunks(TASK)).zip(dy.chunks(TASK));
        let tasks = inputs.zip(dgate.chunks_mut(TASK)).zip(dup.chunks_mut(TASK)).collect();
        parallel::for_each(tasks, COST * gate.len(), |((((gate, up), dy), dgate), dup)| {
            backward_run::<T>(gate, up, dy, dgate, dup);
        });
        (tensor::from_vec(dgate, shape), tensor::from_vec(dup, shape))
    })
}

vectorized! {
    fn forward_run<T: Scalar>(gate: &[T], up: &[T], y: &mut [T]) {
        for ((gate, up), y) in gate.iter().zip(up).zip(y) {
            let x = gate.to_f32();
            *y = T::from_f32(x * math::sigmoid(x) * up.to_f32());
        }
    }

    fn backward_run<T: Scalar>(gate: &[T], up: &[T], dy: &[T], dgate: &mut [T], dup: &mut [T]) {
        for ((((gate, up), dy), dgate), dup) in gate.iter().zip(up).zip(dy).zip(dgate).zip(dup) {
            let (x, dy) = (gate.to_f32(), dy.to_f32());
            let s = math::sigmoid(x);
            *dgate = T::from_f32(dy * up.to_f32() * s * (1.0 + x * (1.0 - s)));
            *dup = T::from_f32(dy * x * s);
        }
    }
}
