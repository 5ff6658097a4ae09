//! Scaled rows on a GPU: one unit for each element; for their products one cube for each row.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};
use cubecl::prelude::*;

use super::RowScaleOps;
use crate::cube::reduce::cube_sum;
use crate::cube::tensor::{array, dims, elements, empty, float, in_place, into_float, rows, units, wrap};

impl<R, F, I, T> RowScaleOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn row_scale(x: Tensor<Self, 2>, factors: &Tensor<Self, 1>) -> Tensor<Self, 2> {
        let (x, factors) = (into_float(x), float(factors));
        let y = in_place(&x);
        let count = elements(&x);
        let (cubes, dim) = units(count);
        // SAFETY: units from `count` on do nothing; an element is read before the same unit writes it.
        unsafe {
            row_scale_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                dim,
                array(&x),
                array(&factors),
                array(&y),
                count as u32,
                dims(&x)[1] as u32,
                x.dtype.into(),
            );
        }
        wrap(y)
    }

    fn row_products(x: &Tensor<Self, 2>, y: &Tensor<Self, 2>) -> Tensor<Self, 1> {
        let (x, y) = (float(x), float(y));
        let shape = dims(&x);
        let sums = empty(&x, &[shape[0]], DType::F32);
        let (cubes, units) = rows(shape[0], shape[1]);
        // SAFETY: every unit stays in its row, and cubes beyond the rows do nothing.
        unsafe {
            row_products_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                CubeDim::new_1d(units),
                array(&x),
                array(&y),
                array(&sums),
                shape[0] as u32,
                shape[1] as u32,
                units,
                x.dtype.into(),
            );
        }
        wrap(sums)
    }
}

#[cube(launch_unchecked)]
fn row_products_kernel<F: Float>(
    x: &Array<F>,
    y: &Array<F>,
    sums: &mut Array<f32>,
    count: u32,
    width: u32,
    #[comptime] units: u32,
    #[define(F)] _dtype: StorageType,
) {
    if CUBE_POS >= count as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(units as usize));
    let start = CUBE_POS * width as usize;
    let mut sum = 0.0f32;
    let mut column = UNIT_POS;
    while column < width {
        let at = start + column as usize;
        sum += f32::cast_from(x[at]) * f32::cast_from(y[at]);
        column += units;
    }
    let sum = cube_sum(sum, &mut shared, units);
    if UNIT_POS == 0 {
        sums[CUBE_POS] = sum;
    }
}

#[cube(launch_unchecked)]
fn row_scale_kernel<F: Float>(
    x: &Array<F>,
    factors: &Array<f32>,
    y: &mut Array<F>,
    count: u32,
    width: u32,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < count as usize {
        let factor = factors[(ABSOLUTE_POS as u32 / width) as usize];
        y[ABSOLUTE_POS] = F::cast_from(f32::cast_from(x[ABSOLUTE_POS]) * factor);
    }
}
