//! The gated activation on a GPU: one unit for each vector of elements.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::Tensor;
use cubecl::prelude::*;

use super::{Activation, CLAMPED_FACTOR, CLAMPED_LIMIT, GELU_CUBIC, GELU_LINEAR, GELU_SATURATED, GatedOps};
use crate::cube::tensor::{
    array_of, elements, empty_like, float, in_place, into_float, units, vector_size, wrap,
};

impl<R, F, I, T> GatedOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn gated(activation: Activation, gate: &Tensor<Self, 2>, up: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        let (gate, up) = (float(gate), float(up));
        let y = empty_like(&gate);
        let vector = vector_size(&gate.client, gate.dtype, &[elements(&gate)]);
        let count = elements(&gate) / vector;
        let (cubes, dim) = units(count);
        // SAFETY: units from `count` on do nothing.
        unsafe {
            gated_kernel::launch_unchecked::<R>(
                &gate.client,
                cubes,
                dim,
                vector,
                array_of(&gate, vector),
                array_of(&up, vector),
                array_of(&y, vector),
                count as u32,
                activation,
                gate.dtype.into(),
            );
        }
        wrap(y)
    }

    fn gated_backward(
        activation: Activation,
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let (gate, up, dy) = (into_float(gate), into_float(up), into_float(dy));
        let (dgate, dup) = (in_place(&gate), in_place(&up));
        let vector = vector_size(&gate.client, gate.dtype, &[elements(&gate)]);
        let count = elements(&gate) / vector;
        let (cubes, dim) = units(count);
        // SAFETY: as above; an element is read before the same unit writes it.
        unsafe {
            gated_backward_kernel::launch_unchecked::<R>(
                &gate.client,
                cubes,
                dim,
                vector,
                array_of(&gate, vector),
                array_of(&up, vector),
                array_of(&dy, vector),
                array_of(&dgate, vector),
                array_of(&dup, vector),
                count as u32,
                activation,
                gate.dtype.into(),
            );
        }
        (wrap(dgate), wrap(dup))
    }
}

/// The other end of [`GELU_SATURATED`].
const LEAST: f32 = -GELU_SATURATED;
/// The other end of [`CLAMPED_LIMIT`].
const CLAMPED_LEAST: f32 = -CLAMPED_LIMIT;

/// v of the gate.
#[cube]
pub(crate) fn argument(x: f32, #[comptime] activation: Activation) -> f32 {
    let mut v = x;
    if comptime!(activation == Activation::GeluTanh) {
        let x = max(min(x, GELU_SATURATED), LEAST);
        v = x * (x * x * GELU_CUBIC + GELU_LINEAR);
    }
    if comptime!(activation == Activation::Clamped) {
        v = x * CLAMPED_FACTOR;
    }
    v
}

/// gate · v′.
#[cube]
pub(crate) fn slope(x: f32, #[comptime] activation: Activation) -> f32 {
    let mut slope = x;
    if comptime!(activation == Activation::GeluTanh) {
        let x = max(min(x, GELU_SATURATED), LEAST);
        slope = x * (x * x * GELU_CUBIC * 3.0f32 + GELU_LINEAR);
    }
    if comptime!(activation == Activation::Clamped) {
        slope = x * CLAMPED_FACTOR;
    }
    slope
}

#[cube]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}

#[cube(launch_unchecked)]
fn gated_kernel<F: Float, N: Size>(
    gate: &Array<Vector<F, N>>,
    up: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    count: u32,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let (gates, ups) = (gate[ABSOLUTE_POS], up[ABSOLUTE_POS]);
    let mut values = Vector::<F, N>::empty();
    #[unroll]
    for lane in 0..values.vector_size() {
        let mut g = f32::cast_from(gates[lane]);
        let mut u = f32::cast_from(ups[lane]);
        if comptime!(activation == Activation::Clamped) {
            g = min(g, CLAMPED_LIMIT);
            u = max(min(u, CLAMPED_LIMIT), CLAMPED_LEAST) + 1.0f32;
        }
        let s = sigmoid(argument(g, activation));
        let mut value = s;
        if comptime!(activation != Activation::Sigmoid) {
            value = g * s;
        }
        values[lane] = F::cast_from(value * u);
    }
    y[ABSOLUTE_POS] = values;
}

#[cube(launch_unchecked)]
fn gated_backward_kernel<F: Float, N: Size>(
    gate: &Array<Vector<F, N>>,
    up: &Array<Vector<F, N>>,
    dy: &Array<Vector<F, N>>,
    dgate: &mut Array<Vector<F, N>>,
    dup: &mut Array<Vector<F, N>>,
    count: u32,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let (gates, ups, slopes) = (gate[ABSOLUTE_POS], up[ABSOLUTE_POS], dy[ABSOLUTE_POS]);
    let mut dgates = Vector::<F, N>::empty();
    let mut dups = Vector::<F, N>::empty();
    #[unroll]
    for lane in 0..dgates.vector_size() {
        let mut g = f32::cast_from(gates[lane]);
        let mut u = f32::cast_from(ups[lane]);
        let dy = f32::cast_from(slopes[lane]);
        // Beyond a limit nothing moves.
        let mut gate_moves = 1.0f32;
        let mut up_moves = 1.0f32;
        if comptime!(activation == Activation::Clamped) {
            if g > CLAMPED_LIMIT {
                gate_moves = 0.0f32;
            }
            if u.abs() > CLAMPED_LIMIT {
                up_moves = 0.0f32;
            }
            g = min(g, CLAMPED_LIMIT);
            u = max(min(u, CLAMPED_LIMIT), CLAMPED_LEAST) + 1.0f32;
        }
        let s = sigmoid(argument(g, activation));
        let mut factor = 1.0f32 - s;
        let mut value = dy;
        if comptime!(activation != Activation::Sigmoid) {
            factor = 1.0f32 + slope(g, activation) * factor;
            value = dy * g;
        }
        dgates[lane] = F::cast_from(dy * u * s * factor * gate_moves);
        dups[lane] = F::cast_from(value * s * up_moves);
    }
    dgate[ABSOLUTE_POS] = dgates;
    dup[ABSOLUTE_POS] = dups;
}
