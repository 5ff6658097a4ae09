//! RMS normalisation on the CPU, a run of rows per task.

use burn::tensor::Tensor;
use burn_flex::Flex;

use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{math, parallel, scratch, tensor, vectorized};

/// `rms_norm` of the CPU backend.
pub(crate) fn forward(x: Tensor<Flex, 2>, weight: &Tensor<Flex, 1>, epsilon: f64) -> Tensor<Flex, 2> {
    let shape = x.dims();
    let x = tensor::primitive(x);
    let weight = tensor::primitive(weight.clone());
    let weight = tensor::floats(&weight);
    with_float!(x.dtype(), T => {
        let x = x.storage::<T>();
        let mut y = vec![<T as Scalar>::from_f32(0.0); x.len()];
        let chunk = (parallel::rows_per_task(shape[1]) * shape[1]).max(1);
        let tasks = x.chunks(chunk).zip(y.chunks_mut(chunk)).collect();
        parallel::for_each(tasks, 2 * x.len(), |(x, y)| forward_rows::<T>(x, &weight, epsilon as f32, y));
        tensor::from_vec(y, shape)
    })
}

/// `rms_norm_backward` of the CPU backend.
pub(crate) fn backward(
    x: Tensor<Flex, 2>,
    weight: &Tensor<Flex, 1>,
    epsilon: f64,
    dy: Tensor<Flex, 2>,
) -> Tensor<Flex, 2> {
    let shape = x.dims();
    let (x, dy) = (tensor::primitive(x), tensor::primitive(dy));
    let weight = tensor::primitive(weight.clone());
    let weight = tensor::floats(&weight);
    with_float!(x.dtype(), T => {
        let (x, dy) = (x.storage::<T>(), dy.storage::<T>());
        let mut dx = vec![<T as Scalar>::from_f32(0.0); x.len()];
        let chunk = (parallel::rows_per_task(shape[1]) * shape[1]).max(1);
        let tasks = x.chunks(chunk).zip(dy.chunks(chunk)).zip(dx.chunks_mut(chunk)).collect();
        parallel::for_each(tasks, 4 * x.len(), |((x, dy), dx)| {
            let mut wide = scratch::take(2 * weight.len());
            backward_rows::<T>(x, &weight, epsilon as f32, dy, dx, &mut wide);
        });
        tensor::from_vec(dx, shape)
    })
}

vectorized! {
    fn forward_rows<T: Scalar>(x: &[T], weight: &[f32], epsilon: f32, y: &mut [T]) {
        let width = weight.len().max(1);
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let r = inverse_rms(x, epsilon);
            for ((x, y), weight) in x.iter().zip(y).zip(weight) {
                let normalised = T::from_f32(x.to_f32() * r).to_f32();
                *y = T::from_f32(normalised * weight);
            }
        }
    }

    /// `wide` holds two rows: x and g = dy · weight in f32.
    fn backward_rows<T: Scalar>(x: &[T], weight: &[f32], epsilon: f32, dy: &[T], dx: &mut [T], wide: &mut [f32]) {
        let width = weight.len().max(1);
        let (wide_x, g) = wide.split_at_mut(width);
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            for i in 0..width {
                wide_x[i] = x[i].to_f32();
                g[i] = dy[i].to_f32() * weight[i];
            }
            let r = 1.0 / (math::dot(wide_x, wide_x) / width as f32 + epsilon).sqrt();
            let slope = math::dot(wide_x, g) / width as f32 * r * r;
            for i in 0..width {
                dx[i] = T::from_f32(r * (g[i] - wide_x[i] * slope));
            }
        }
    }
}

#[inline(always)]
fn inverse_rms<T: Scalar>(x: &[T], epsilon: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let runs = x.chunks_exact(16);
    let tail: f32 = runs.remainder().iter().map(|x| x.to_f32() * x.to_f32()).sum();
    for run in runs {
        for (lane, x) in lanes.iter_mut().zip(run) {
            *lane += x.to_f32() * x.to_f32();
        }
    }
    1.0 / ((math::join(lanes) + tail) / x.len() as f32 + epsilon).sqrt()
}
