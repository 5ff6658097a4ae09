//! Scaled columns on the CPU: some rows per task; the gradient of the factors by blocks of columns, each summed over
//! the tokens in order, so that it does not depend on the number of threads.

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::ColumnScaleOps;
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{parallel, pool, tensor, vectorized};

/// Columns of a task of the factors' gradient.
const COLUMNS: usize = 256;

impl ColumnScaleOps for Flex {
    fn column_scale(
        u: &Tensor<Flex, 2>,
        factors: &Tensor<Flex, 2>,
        bias: Option<&Tensor<Flex, 1>>,
        residual: Option<&Tensor<Flex, 2>>,
    ) -> Tensor<Flex, 2> {
        let shape = u.dims();
        let (u, factors) = (tensor::primitive(u.clone()), tensor::primitive(factors.clone()));
        let factors = factors.storage::<f32>();
        let bias = bias.map(|bias| tensor::primitive(bias.clone()));
        let bias = bias.as_ref().map(tensor::floats);
        let residual = residual.map(|residual| tensor::primitive(residual.clone()));
        with_float!(u.dtype(), T => {
            let u = u.storage::<T>();
            let residual = residual.as_ref().map(|residual| residual.storage::<T>());
            let width = shape[1].max(1);
            let task = parallel::rows_per_task(width) * width;
            let mut y = pool::take::<T>(u.len());
            let tasks = u.chunks(task).zip(y.chunks_mut(task)).enumerate().collect();
            parallel::for_each(tasks, 4 * u.len(), |(index, (u, y))| {
                let rows = u.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate();
                for (row, (u, y)) in rows {
                    let start = index * task + row * width;
                    let residual = residual.map(|residual| &residual[start..][..width]);
                    forward_row::<T>(u, factors, bias.as_deref(), residual, y);
                }
            });
            tensor::from_buffer(y, shape)
        })
    }

    fn column_scale_backward(
        u: &Tensor<Flex, 2>,
        factors: &Tensor<Flex, 2>,
        dy: &Tensor<Flex, 2>,
    ) -> (Tensor<Flex, 2>, Tensor<Flex, 2>) {
        let shape = u.dims();
        let du = Self::column_scale(dy, factors, None, None);
        let (u, dy) = (tensor::primitive(u.clone()), tensor::primitive(dy.clone()));
        with_float!(u.dtype(), T => {
            let (u, dy) = (u.storage::<T>(), dy.storage::<T>());
            let width = shape[1];
            let mut sums = pool::take::<f32>(width);
            let tasks = sums.chunks_mut(COLUMNS).enumerate().collect();
            parallel::for_each(tasks, 2 * u.len(), |(index, out)| {
                let first = index * COLUMNS;
                let mut sums = [0.0f64; COLUMNS];
                for start in (first..u.len()).step_by(width.max(1)) {
                    add_products::<T>(&u[start..][..out.len()], &dy[start..][..out.len()], &mut sums);
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = sum as f32;
                }
            });
            (du, tensor::from_buffer(sums, [1, width]))
        })
    }
}

fn forward_row<T: Scalar>(
    u: &[T],
    factors: &[f32],
    bias: Option<&[f32]>,
    residual: Option<&[T]>,
    y: &mut [T],
) {
    match (bias, residual) {
        (None, None) => scale::<T>(u, factors, y),
        (Some(bias), None) => scale_and_shift::<T>(u, factors, bias, y),
        (None, Some(residual)) => scale_and_add::<T>(u, factors, residual, y),
        (Some(bias), Some(residual)) => {
            let values = u.iter().zip(factors).zip(bias.iter().zip(residual));
            for (y, ((u, factor), (bias, residual))) in y.iter_mut().zip(values) {
                *y = T::from_f32(u.to_f32() * factor + bias + residual.to_f32());
            }
        }
    }
}

vectorized! {
    fn scale<T: Scalar>(u: &[T], factors: &[f32], y: &mut [T]) {
        for ((u, factor), y) in u.iter().zip(factors).zip(y) {
            *y = T::from_f32(u.to_f32() * factor);
        }
    }

    fn scale_and_shift<T: Scalar>(u: &[T], factors: &[f32], bias: &[f32], y: &mut [T]) {
        for (((u, factor), bias), y) in u.iter().zip(factors).zip(bias).zip(y) {
            *y = T::from_f32(u.to_f32() * factor + bias);
        }
    }

    fn scale_and_add<T: Scalar>(u: &[T], factors: &[f32], residual: &[T], y: &mut [T]) {
        for (((u, factor), residual), y) in u.iter().zip(factors).zip(residual).zip(y) {
            *y = T::from_f32(u.to_f32() * factor + residual.to_f32());
        }
    }

    fn add_products<T: Scalar>(u: &[T], dy: &[T], sums: &mut [f64]) {
        for ((u, dy), sum) in u.iter().zip(dy).zip(sums) {
            *sum += f64::from(u.to_f32()) * f64::from(dy.to_f32());
        }
    }
}
