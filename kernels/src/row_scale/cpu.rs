//! Scaled rows on the CPU, a run of rows per task.

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::RowScaleOps;
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{parallel, pool, tensor, vectorized};

impl RowScaleOps for Flex {
    fn row_scale(x: Tensor<Self, 2>, factors: &Tensor<Self, 1>) -> Tensor<Self, 2> {
        let width = x.dims()[1].max(1);
        let factors = tensor::primitive(factors.clone());
        let factors = factors.storage::<f32>();
        let mut x = tensor::owned(x);
        with_float!(x.dtype(), T => {
            let x = x.storage_mut::<T>();
            let (rows, work) = (parallel::rows_per_task(width), 2 * x.len());
            let tasks = x.chunks_mut(rows * width).zip(factors.chunks(rows)).collect();
            parallel::for_each(tasks, work, |(x, factors)| scale_rows::<T>(x, factors, width));
        });
        tensor::from_flex(x)
    }

    fn row_products(x: &Tensor<Self, 2>, y: &Tensor<Self, 2>) -> Tensor<Self, 1> {
        let [rows, width] = x.dims();
        let (x, y) = (tensor::primitive(x.clone()), tensor::primitive(y.clone()));
        let mut sums = pool::zeros::<f32>(rows);
        with_float!(x.dtype(), T => {
            let (x, y) = (x.storage::<T>(), y.storage::<T>());
            let (per_task, work) = (parallel::rows_per_task(width), 2 * x.len());
            let chunk = (per_task * width).max(1);
            let tasks = sums.chunks_mut(per_task).zip(x.chunks(chunk).zip(y.chunks(chunk))).collect();
            parallel::for_each(tasks, work, |(sums, (x, y))| {
                let rows = x.chunks_exact(width.max(1)).zip(y.chunks_exact(width.max(1)));
                for (sum, (x, y)) in sums.iter_mut().zip(rows) {
                    let mut lanes = [0.0; LANES];
                    add_products::<T>(x, y, &mut lanes);
                    *sum = lanes.iter().sum();
                }
            });
        });
        tensor::from_buffer(sums, [rows])
    }
}

/// Sums of a row that are added up side by side.
const LANES: usize = 16;

vectorized! {
    fn scale_rows<T: Scalar>(x: &mut [T], factors: &[f32], width: usize) {
        for (row, factor) in x.chunks_exact_mut(width).zip(factors) {
            for x in row {
                *x = T::from_f32(x.to_f32() * factor);
            }
        }
    }

    fn add_products<T: Scalar>(x: &[T], y: &[T], lanes: &mut [f32; LANES]) {
        for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
            for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
                *lane += x.to_f32() * y.to_f32();
            }
        }
    }
}
