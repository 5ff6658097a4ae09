//! Sums of rows on a GPU: one unit for each element.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::Tensor;
use cubecl::prelude::*;

use super::{RowLists, RowSumOps};
use crate::cube::tensor::{array, dims, elements, empty, float, units, wrap};
use crate::cube::uploads;

impl<R, F, I, T> RowSumOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn row_sum(x: &Tensor<Self, 2>, lists: &RowLists) -> Tensor<Self, 2> {
        let x = float(x);
        let width = dims(&x)[1];
        let y = empty(&x, &[lists.results(), width], x.dtype);
        let count = elements(&y);
        if count == 0 || lists.rows.is_empty() {
            return wrap::<R, F, I, T, 2>(y).zeros_like();
        }
        let (cubes, dim) = units(count);
        let list = |name, words: &[u32]| {
            uploads::argument(&lists.uploads.list(&x, (name, [0; 3]), || words.to_vec()))
        };
        // SAFETY: units from `count` on do nothing, and lists name rows of x.
        unsafe {
            row_sum_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                dim,
                array(&x),
                list("offsets", &lists.offsets),
                list("rows", &lists.rows),
                array(&y),
                count as u32,
                width as u32,
                x.dtype.into(),
            );
        }
        wrap(y)
    }
}

#[cube(launch_unchecked)]
fn row_sum_kernel<F: Float>(
    x: &Array<F>,
    offsets: &Array<u32>,
    rows: &Array<u32>,
    y: &mut Array<F>,
    count: u32,
    width: u32,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < count as usize {
        let row = ABSOLUTE_POS as u32 / width;
        let column = ABSOLUTE_POS as u32 % width;
        let end = offsets[(row + 1) as usize];
        let mut at = offsets[row as usize];
        let mut sum = 0.0f32;
        while at < end {
            sum += f32::cast_from(x[(rows[at as usize] * width + column) as usize]);
            at += 1;
        }
        y[ABSOLUTE_POS] = F::cast_from(sum);
    }
}
