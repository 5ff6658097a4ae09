//! Scaled rows on a GPU: one unit for each element.

use burn::tensor::Tensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::RowScaleOps;
use crate::cube::tensor::{array, dims, elements, float, in_place, into_float, units, wrap};

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
