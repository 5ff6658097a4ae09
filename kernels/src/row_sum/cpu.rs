//! Sums of rows on the CPU, a run of rows per task.

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::{RowLists, RowSumOps};
use crate::cpu::scalar::{Scalar, narrow, with_float};
use crate::cpu::{parallel, pool, tensor, vectorized};

impl RowSumOps for Flex {
    fn row_sum(x: &Tensor<Self, 2>, lists: &RowLists) -> Tensor<Self, 2> {
        let width = x.dims()[1];
        let x = tensor::primitive(x.clone());
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let mut y = pool::take::<T>(lists.results() * width);
            let rows = parallel::rows_per_task(width);
            let work = y.len();
            let tasks = y.chunks_mut((rows * width).max(1)).enumerate().collect();
            parallel::for_each(tasks, work, |(task, y)| {
                let mut sum = pool::take::<f32>(width);
                for (index, y) in y.chunks_exact_mut(width).enumerate() {
                    let row = |row: u32| &x[row as usize * width..][..width];
                    match lists.list(task * rows + index) {
                        [one] => y.copy_from_slice(row(*one)),
                        many => {
                            sum.fill(0.0);
                            many.iter().for_each(|one| add::<T>(row(*one), &mut sum));
                            narrow(&sum, y);
                        }
                    }
                }
            });
            tensor::from_buffer(y, [lists.results(), width])
        })
    }
}

vectorized! {
    fn add<T: Scalar>(x: &[T], sum: &mut [f32]) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x.to_f32();
        }
    }
}
