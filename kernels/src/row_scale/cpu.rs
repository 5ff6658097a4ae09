//! Scaled rows on the CPU, a run of rows per task.

use burn::tensor::Tensor;
use burn_flex::Flex;

use super::RowScaleOps;
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{parallel, tensor, vectorized};

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
}

vectorized! {
    fn scale_rows<T: Scalar>(x: &mut [T], factors: &[f32], width: usize) {
        for (row, factor) in x.chunks_exact_mut(width).zip(factors) {
            for x in row {
                *x = T::from_f32(x.to_f32() * factor);
            }
        }
    }
}
