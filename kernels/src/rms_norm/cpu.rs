//! RMS normalisation on the CPU, a run of rows per task.

use std::borrow::Cow;

use burn_flex::{Flex, FlexTensor};
use burn_tensor::Tensor;

#[cfg(target_arch = "x86_64")]
use super::fast;
use super::{NormWeight, RmsNorm, RmsNormOps, Rounding};
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{math, parallel, pool, tensor, vectorized};

impl RmsNormOps for Flex {
    fn rms_norm(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        norm: RmsNorm,
        onto: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        let shape = x.dims();
        let x = tensor::primitive(x.clone());
        let onto = onto.map(|onto| tensor::primitive(onto.clone()));
        let weight = tensor::primitive(weight.clone());
        let weight = factors(&weight, norm.weight);
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let onto = onto.as_ref().map_or(&[][..], |onto| onto.storage::<T>());
            let mut y = pool::take::<T>(x.len());
            let chunk = (parallel::rows_per_task(shape[1]) * shape[1]).max(1);
            let tasks = x.chunks(chunk).zip(y.chunks_mut(chunk)).enumerate().collect();
            parallel::for_each(tasks, 2 * x.len(), |(task, (x, y))| {
                let onto = onto.get(task * chunk..).unwrap_or(&[]);
                #[cfg(target_arch = "x86_64")]
                if crate::cpu::fast::available() {
                    let rounds_first = norm.rounding == Rounding::BeforeWeight;
                    let norm = fast::Norm { weight: &weight, epsilon: norm.epsilon as f32, rounds_first };
                    // SAFETY: asked just before.
                    return unsafe { fast::forward_rows::<T>(x, norm, onto, y) };
                }
                forward_rows::<T>(x, &weight, norm, onto, y);
            });
            tensor::from_buffer(y, shape)
        })
    }

    /// In place of `dy`.
    fn rms_norm_backward(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        norm: RmsNorm,
        dy: Tensor<Self, 2>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        let shape = x.dims();
        let x = tensor::primitive(x.clone());
        let residual = residual.map(|residual| tensor::primitive(residual.clone()));
        let weight = tensor::primitive(weight.clone());
        let weight = factors(&weight, norm.weight);
        let mut dy = tensor::owned(dy);
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let residual = residual.as_ref().map_or(&[][..], |residual| residual.storage::<T>());
            let chunk = (parallel::rows_per_task(shape[1]) * shape[1]).max(1);
            let tasks = x.chunks(chunk).zip(dy.storage_mut::<T>().chunks_mut(chunk)).enumerate().collect();
            parallel::for_each(tasks, 4 * x.len(), |(task, (x, dy))| {
                let residual = residual.get(task * chunk..).unwrap_or(&[]);
                #[cfg(target_arch = "x86_64")]
                if crate::cpu::fast::available() {
                    let epsilon = norm.epsilon as f32;
                    let norm = fast::Norm { weight: &weight, epsilon, rounds_first: false };
                    // SAFETY: asked just before.
                    return unsafe { fast::backward_rows::<T>(x, norm, dy, residual) };
                }
                let mut wide = pool::take::<f32>(2 * weight.len());
                backward_rows::<T>(x, &weight, norm.epsilon as f32, dy, residual, &mut wide);
            });
        });
        tensor::from_flex(dy)
    }
}

/// What each column is multiplied by, in f32.
fn factors(weight: &FlexTensor, kind: NormWeight) -> Cow<'_, [f32]> {
    let weight = tensor::floats(weight);
    match kind {
        NormWeight::Plain => weight,
        NormWeight::OnePlus => weight.iter().map(|weight| 1.0 + weight).collect(),
    }
}

vectorized! {
    /// `onto` is as long as `x`, or empty.
    fn forward_rows<T: Scalar>(x: &[T], weight: &[f32], norm: RmsNorm, onto: &[T], y: &mut [T]) {
        let width = weight.len().max(1);
        for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let r = inverse_rms(x, norm.epsilon as f32);
            let onto = onto.get(row * width..(row + 1) * width);
            match norm.rounding {
                Rounding::BeforeWeight => multiply(x, weight, onto, y, |x| T::from_f32(x * r).to_f32()),
                Rounding::Last => multiply(x, weight, onto, y, |x| x * r),
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

/// `onto` plus `weight` times the normalised values, rounded.
#[inline(always)]
fn multiply<T: Scalar>(
    x: &[T],
    weight: &[f32],
    onto: Option<&[T]>,
    y: &mut [T],
    normalised: impl Fn(f32) -> f32,
) {
    let values = x.iter().zip(weight).map(|(x, weight)| normalised(x.to_f32()) * weight);
    match onto {
        Some(onto) => {
            for ((y, value), onto) in y.iter_mut().zip(values).zip(onto) {
                *y = T::from_f32(onto.to_f32() + value);
            }
        }
        None => {
            for (y, value) in y.iter_mut().zip(values) {
                *y = T::from_f32(value);
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
