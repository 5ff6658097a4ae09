//! Activations without a gate on a GPU: one unit for each vector of elements.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::Tensor;
use cubecl::prelude::*;

use super::{ActivationOps, DENSITY, Function, ROOT_HALF};
use crate::cube::tensor::{
    array_of, elements, empty_like, float, in_place, into_float, units, vector_size, wrap,
};
use crate::gated::Activation;
use crate::gated::cube::{argument, sigmoid, slope};

impl<R, F, I, T> ActivationOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn activation(function: Function, x: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        let x = float(x);
        let y = empty_like(&x);
        let vector = vector_size(&x.client, x.dtype, &[elements(&x)]);
        let count = elements(&x) / vector;
        let (cubes, dim) = units(count);
        // SAFETY: units from `count` on do nothing.
        unsafe {
            activation_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                dim,
                vector,
                array_of(&x, vector),
                array_of(&y, vector),
                count as u32,
                function,
                x.dtype.into(),
            );
        }
        wrap(y)
    }

    fn activation_backward(function: Function, x: Tensor<Self, 2>, dy: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let (x, dy) = (into_float(x), into_float(dy));
        let dx = in_place(&x);
        let vector = vector_size(&x.client, x.dtype, &[elements(&x)]);
        let count = elements(&x) / vector;
        let (cubes, dim) = units(count);
        // SAFETY: as above; an element is read before the same unit writes it.
        unsafe {
            activation_backward_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                dim,
                vector,
                array_of(&x, vector),
                array_of(&dy, vector),
                array_of(&dx, vector),
                count as u32,
                function,
                x.dtype.into(),
            );
        }
        wrap(dx)
    }
}

/// Abramowitz and Stegun's p, and half of a₁ … a₅ by size.
const P: f32 = super::ERF[0];
const FIRST: f32 = super::ERF[1];
const SECOND: f32 = -super::ERF[2];
const THIRD: f32 = super::ERF[3];
const FOURTH: f32 = -super::ERF[4];
const FIFTH: f32 = super::ERF[5];

/// Beyond it Φ is 0 or 1 in f32, and squares could overflow.
const FAR: f32 = 16.0;
const LEAST: f32 = -FAR;

/// Φ(x).
#[cube]
fn normal(x: f32) -> f32 {
    let z = min(x.abs(), FAR) * ROOT_HALF;
    let t = 1.0f32 / (1.0f32 + P * z);
    let sum = FIRST - t * (SECOND - t * (THIRD - t * (FOURTH - t * FIFTH)));
    let tail = t * sum * (0.0f32 - z * z).exp();
    select(x < 0.0f32, tail, 1.0f32 - tail)
}

#[cube(launch_unchecked)]
fn activation_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    count: u32,
    #[comptime] function: Function,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let read = x[ABSOLUTE_POS];
    let mut values = Vector::<F, N>::empty();
    #[unroll]
    for lane in 0..values.vector_size() {
        let x = f32::cast_from(read[lane]);
        let value = match comptime!(function) {
            Function::Gelu => x * normal(x),
            Function::GeluTanh => x * sigmoid(argument(x, Activation::GeluTanh)),
            Function::ReluSquared => max(x, 0.0f32) * max(x, 0.0f32),
        };
        values[lane] = F::cast_from(value);
    }
    y[ABSOLUTE_POS] = values;
}

#[cube(launch_unchecked)]
fn activation_backward_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    dy: &Array<Vector<F, N>>,
    dx: &mut Array<Vector<F, N>>,
    count: u32,
    #[comptime] function: Function,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let (read, upstream) = (x[ABSOLUTE_POS], dy[ABSOLUTE_POS]);
    let mut values = Vector::<F, N>::empty();
    #[unroll]
    for lane in 0..values.vector_size() {
        let x = f32::cast_from(read[lane]);
        let slope = match comptime!(function) {
            Function::Gelu => {
                let near = max(min(x, FAR), LEAST);
                normal(x) + near * DENSITY * (0.0f32 - 0.5f32 * near * near).exp()
            }
            Function::GeluTanh => {
                let s = sigmoid(argument(x, Activation::GeluTanh));
                s * (1.0f32 + slope(x, Activation::GeluTanh) * (1.0f32 - s))
            }
            Function::ReluSquared => 2.0f32 * max(x, 0.0f32),
        };
        values[lane] = F::cast_from(f32::cast_from(upstream[lane]) * slope);
    }
    dx[ABSOLUTE_POS] = values;
}
