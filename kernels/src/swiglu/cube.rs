//! SwiGLU on a GPU: one unit for each element.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::tensor::{array, elements, empty_like, in_place, units};

/// [`super::swiglu`].
pub(crate) fn forward<R: CubeRuntime>(gate: &CubeTensor<R>, up: &CubeTensor<R>) -> CubeTensor<R> {
    let y = empty_like(gate);
    let count = elements(gate);
    let (cubes, dim) = units(count);
    // SAFETY: units from `count` on do nothing.
    unsafe {
        swiglu_kernel::launch_unchecked::<R>(
            &gate.client,
            cubes,
            dim,
            array(gate),
            array(up),
            array(&y),
            count as u32,
            gate.dtype.into(),
        );
    }
    y
}

/// [`super::swiglu_backward`].
pub(crate) fn backward<R: CubeRuntime>(
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
    dy: &CubeTensor<R>,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (dgate, dup) = (in_place(&gate), in_place(&up));
    let count = elements(&gate);
    let (cubes, dim) = units(count);
    // SAFETY: as above; an element is read before the same unit writes it.
    unsafe {
        swiglu_backward_kernel::launch_unchecked::<R>(
            &gate.client,
            cubes,
            dim,
            array(&gate),
            array(&up),
            array(dy),
            array(&dgate),
            array(&dup),
            count as u32,
            gate.dtype.into(),
        );
    }
    (dgate, dup)
}

#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}

#[cube(launch_unchecked)]
fn swiglu_kernel<F: Float>(
    gate: &Array<F>,
    up: &Array<F>,
    y: &mut Array<F>,
    count: u32,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let g = f32::cast_from(gate[ABSOLUTE_POS]);
    y[ABSOLUTE_POS] = F::cast_from(g * sigmoid(g) * f32::cast_from(up[ABSOLUTE_POS]));
}

#[cube(launch_unchecked)]
fn swiglu_backward_kernel<F: Float>(
    gate: &Array<F>,
    up: &Array<F>,
    dy: &Array<F>,
    dgate: &mut Array<F>,
    dup: &mut Array<F>,
    count: u32,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let g = f32::cast_from(gate[ABSOLUTE_POS]);
    let u = f32::cast_from(up[ABSOLUTE_POS]);
    let slope = f32::cast_from(dy[ABSOLUTE_POS]);
    let s = sigmoid(g);
    dgate[ABSOLUTE_POS] = F::cast_from(slope * u * s * (1.0f32 + g * (1.0f32 - s)));
    dup[ABSOLUTE_POS] = F::cast_from(slope * g * s);
}
