//! RMS normalisation on the CPU, a run of rows per task.

use burn::tensor::Tensor;
use burn_flex::Flex;

use super::RmsNormOps;
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{math, parallel, pool, tensor, vectorized};

impl RmsNormOps for Flex {
    fn rms_norm(x: &Tensor<Flex, 2>, weight: &Tensor<Flex, 1>, epsilon: f64) -> Tensor<Flex, 2> {
        let shape = x.dims();
        let x = tensor::primitive(x.clone());
        let weight = tensor::primitive(weight.clone());
        let weight = tensor::floats(&weight);
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let mut y = pool::take::<T>(x.len());
            let chunk = (parallel::rows_per_task(shape[1]) * shape[1]).max(1);
            let tasks = x.chunks(chunk).zip(y.chunks_mut(chunk)).collect();
            parallel::for_each(tasks, 2 * x.len(), |(x, y)| forward_rows::<T>(x, &weight, epsilon as f32, y));
            tensor::from_buffer(y, shape)
        })
    }

    fn rms_norm_backward(
        x: &Tensor<Flex, 2>,
        weight: &Tensor<Flex, 1>,
        epsilon: f64,
        dy: Tensor<Flex, 2>,
        residual: Option<&Tensor<Flex, 2>>,
    ) -> Tensor<Flex, 2> {
        let shape = x.dims();
        let x = tensor::primitive(x.clone());
        let residual = residual.map(|residual| tensor::primitive(residual.clone()));
        let weight = tensor::primitive(weight.clone());
        let weight = tensor::floats(&weight);
        let mut dy = tensor::owned(dy);
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let residual = residual.as_ref().map_or(&[][..], |residual| residual.storage::<T>());
            let chunk = (parallel::rows_per_task(shape[1]) * shape[1]).max(1);
            let tasks = x.chunks(chunk).zip(dy.storage_mut::<T>().chunks_mut(chunk)).enumerate().collect();
            parallel::for_each(tasks, 4 * x.len(), |(task, (x, dy))| {
                let mut wide = pool::take::<f32>(2 * weight.len());
                let residual = residual.get(task * chunk..).unwrap_or(&[]);
                backward_rows::<T>(x, &weight, epsilon as f32, dy, residual, &mut wide);
            });
        });
        tensor::from_flex(dy)
    }
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

    /// Turns `dy` into the gradient. `residual` is as long or empty; `wide` holds two rows.
    fn backward_rows<T: Scalar>(x: &[T], weight: &[f32], epsilon: f32, dy: &mut [T], residual: &[T], wide: &mut [f32]) {
        let width = weight.len().max(1);
        let (wide_x, g) = wide.split_at_mut(width);
        for (row, (x, dy)) in x.chunks_exact(width).zip(dy.chunks_exact_mut(width)).enumerate() {
            for i in 0..width {
                wide_x[i] = x[i].to_f32();
                g[i] = dy[i].to_f32() * weight[i];
            }
            let r = 1.0 / (math::dot(wide_x, wide_x) / width as f32 + epsilon).sqrt();
            let slope = math::dot(wide_x, g) / width as f32 * r * r;
            match residual.get(row * width..(row + 1) * width) {
                Some(residual) => {
                    for i in 0..width {
                        dy[i] = T::from_f32(r * (g[i] - wide_x[i] * slope) + residual[i].to_f32());
                    }
                }
                None => {
                    for i in 0..width {
                        dy[i] = T::from_f32(r * (g[i] - wide_x[i] * slope));
                    }
                }
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
