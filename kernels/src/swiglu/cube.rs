//! SwiGLU on a GPU: one unit for each element.

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::SwigluOps;
use crate::cube::tensor::{array, elements, empty_like, float, in_place, into_float, units, wrap};

impl<R, F, I, T> SwigluOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn swiglu(gate: &Tensor<Self, 2>, up: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        wrap(forward(&float(gate), &float(up)))
    }

    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let (dgate, dup) = backward(into_float(gate), into_float(up), &into_float(dy));
        (wrap(dgate), wrap(dup))
    }
}

fn forward<R: CubeRuntime>(gate: &CubeTensor<R>, up: &CubeTensor<R>) -> CubeTensor<R> {
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

fn backward<R: CubeRuntime>(
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
