//! Layer normalisation on the CPU, a run of rows per task.

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::LayerNormOps;
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{math, parallel, pool, tensor, vectorized};

impl LayerNormOps for Flex {
    fn frozen_layer_norm(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        bias: Option<&Tensor<Self, 1>>,
        epsilon: f64,
        onto: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        let shape = x.dims();
        let x = tensor::primitive(x.clone());
        let onto = onto.map(|onto| tensor::primitive(onto.clone()));
        let (weight, bias) = (tensor::primitive(weight.clone()), bias.cloned().map(tensor::primitive));
        let (weight, bias) = (tensor::floats(&weight), bias.as_ref().map(tensor::floats));
        let bias = bias.as_deref().unwrap_or(&[]);
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let onto = onto.as_ref().map_or(&[][..], |onto| onto.storage::<T>());
            let mut y = pool::take::<T>(x.len());
            let chunk = (parallel::rows_per_task(shape[1]) * shape[1]).max(1);
            let tasks = x.chunks(chunk).zip(y.chunks_mut(chunk)).enumerate().collect();
            parallel::for_each(tasks, 3 * x.len(), |(task, (x, y))| {
                let mut normalised = pool::take::<f32>(weight.len());
                let onto = onto.get(task * chunk..).unwrap_or(&[]);
                forward_rows::<T>(x, &weight, bias, epsilon as f32, onto, y, &mut normalised);
            });
            tensor::from_buffer(y, shape)
        })
    }

    /// In place of `dy`.
    fn frozen_layer_norm_backward(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        epsilon: f64,
        dy: Tensor<Self, 2>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
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
            parallel::for_each(tasks, 5 * x.len(), |(task, (x, dy))| {
                let mut wide = pool::take::<f32>(2 * weight.len());
                let residual = residual.get(task * chunk..).unwrap_or(&[]);
                backward_rows::<T>(x, &weight, epsilon as f32, dy, residual, &mut wide);
            });
        });
        tensor::from_flex(dy)
    }
}

/// The row normalised in f32; returns 1 / √(variance + ε).
#[inline(always)]
fn normalise<T: Scalar>(x: &[T], epsilon: f32, normalised: &mut [f32]) -> f32 {
    let width = x.len() as f32;
    for (n, x) in normalised.iter_mut().zip(x) {
        *n = x.to_f32();
    }
    let mean = math::sum(normalised) / width;
    for n in normalised.iter_mut() {
        *n -= mean;
    }
    let r = 1.0 / (math::dot(normalised, normalised) / width + epsilon).sqrt();
    for n in normalised.iter_mut() {
        *n *= r;
    }
    r
}

vectorized! {
    /// `bias` is as long as `weight`, or empty; so is `onto` as `x`. `normalised` holds a row.
    fn forward_rows<T: Scalar>(
        x: &[T],
        weight: &[f32],
        bias: &[f32],
        epsilon: f32,
        onto: &[T],
        y: &mut [T],
        normalised: &mut [f32],
    ) {
        let width = weight.len().max(1);
        for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            normalise(x, epsilon, normalised);
            for (n, weight) in normalised.iter_mut().zip(weight) {
                *n *= weight;
            }
            for (n, bias) in normalised.iter_mut().zip(bias) {
                *n += bias;
            }
            if let Some(onto) = onto.get(row * width..(row + 1) * width) {
                for (n, onto) in normalised.iter_mut().zip(onto) {
                    *n += onto.to_f32();
                }
            }
            for (y, n) in y.iter_mut().zip(normalised.iter()) {
                *y = T::from_f32(*n);
            }
        }
    }

    /// Turns `dy` into the gradient. `residual` is as long or empty; `wide` holds two rows.
    fn backward_rows<T: Scalar>(x: &[T], weight: &[f32], epsilon: f32, dy: &mut [T], residual: &[T], wide: &mut [f32]) {
        let width = weight.len().max(1);
        let (n, g) = wide.split_at_mut(width);
        for (row, (x, dy)) in x.chunks_exact(width).zip(dy.chunks_exact_mut(width)).enumerate() {
            let r = normalise(x, epsilon, n);
            for i in 0..width {
                g[i] = dy[i].to_f32() * weight[i];
            }
            let (mean, along) = (math::sum(g) / width as f32, math::dot(g, n) / width as f32);
            for i in 0..width {
                g[i] = r * (g[i] - mean - n[i] * along);
            }
            if let Some(residual) = residual.get(row * width..(row + 1) * width) {
                for i in 0..width {
                    g[i] += residual[i].to_f32();
                }
            }
            for i in 0..width {
                dy[i] = T::from_f32(g[i]);
            }
        }
    }
}
