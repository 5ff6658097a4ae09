//! The gated activation on a GPU: one unit for each element.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::Tensor;
use cubecl::prelude::*;

use super::{Activation, CLAMPED_FACTOR, CLAMPED_LIMIT, GELU_CUBIC, GELU_LINEAR, GELU_SATURATED, GatedOps};
use crate::cube::tensor::{array, elements, empty_like, float, in_place, into_float, units, wrap};

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
        let count = elements(&gate);
        let (cubes, dim) = units(count);
        // SAFETY: units from `count` on do nothing.
        unsafe {
            gated_kernel::launch_unchecked::<R>(
                &gate.client,
                cubes,
                dim,
                array(&gate),
                array(&up),
                array(&y),
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
        let count = elements(&gate);
        let (cubes, dim) = units(count);
        // SAFETY: as above; an element is read before the same unit writes it.
        unsafe {
            gated_backward_kernel::launch_unchecked::<R>(
                &gate.client,
                cubes,
                dim,
                array(&gate),
                array(&up),
                array(&dy),
                array(&dgate),
                array(&dup),
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
fn gated_kernel<F: Float>(
    gate: &Array<F>,
    up: &Array<F>,
    y: &mut Array<F>,
    count: u32,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let mut g = f32::cast_from(gate[ABSOLUTE_POS]);
    let mut u = f32::cast_from(up[ABSOLUTE_POS]);
    if comptime!(activation == Activation::Clamped) {
        g = min(g, CLAMPED_LIMIT);
        u = max(min(u, CLAMPED_LIMIT), CLAMPED_LEAST) + 1.0f32;
    }
    let s = sigmoid(argument(g, activation));
    let mut value = s;
    if comptime!(activation != Activation::Sigmoid) {
        value = g * s;
    }
    y[ABSOLUTE_POS] = F::cast_from(value * u);
}

#[cube(launch_unchecked)]
fn gated_backward_kernel<F: Float>(
    gate: &Array<F>,
    up: &Array<F>,
    dy: &Array<F>,
    dgate: &mut Array<F>,
    dup: &mut Array<F>,
    count: u32,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let mut g = f32::cast_from(gate[ABSOLUTE_POS]);
    let mut u = f32::cast_from(up[ABSOLUTE_POS]);
    let dy = f32::cast_from(dy[ABSOLUTE_POS]);
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
    dgate[ABSOLUTE_POS] = F::cast_from(dy * u * s * factor * gate_moves);
    dup[ABSOLUTE_POS] = F::cast_from(value * s * up_moves);
}
