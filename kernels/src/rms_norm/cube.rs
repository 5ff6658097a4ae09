//! RMS norm on a GPU: one cube for each row.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::Tensor;
use cubecl::prelude::*;

use super::{NormWeight, RmsNorm, RmsNormOps, Rounding};
use crate::cube::reduce::cube_sum;
use crate::cube::tensor::{array, dims, empty_like, float, into_float, rows, wrap};

impl<R, F, I, T> RmsNormOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn rms_norm(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        norm: RmsNorm,
        onto: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        let (x, weight, onto) = (float(x), float(weight), onto.map(float));
        let y = empty_like(&x);
        let [count, width] = shape(&x);
        let (cubes, units) = rows(count, width);
        // SAFETY: every unit stays below `rows · width`; without `onto` its place is taken by a tensor that is not read.
        unsafe {
            rms_norm_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                CubeDim::new_1d(units),
                array(&x),
                array(&weight),
                array(onto.as_ref().unwrap_or(&x)),
                array(&y),
                count as u32,
                width as u32,
                norm.epsilon as f32,
                onto.is_some(),
                norm.rounding == Rounding::BeforeWeight,
                norm.weight == NormWeight::OnePlus,
                units,
                [x.dtype.into(), weight.dtype.into()],
            );
        }
        wrap(y)
    }

    fn rms_norm_backward(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        norm: RmsNorm,
        dy: Tensor<Self, 2>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        let (x, weight, dy, residual) = (float(x), float(weight), into_float(dy), residual.map(float));
        let dx = empty_like(&x);
        let [count, width] = shape(&x);
        let (cubes, units) = rows(count, width);
        // SAFETY: as above; so for a residual.
        unsafe {
            rms_norm_backward_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                CubeDim::new_1d(units),
                array(&x),
                array(&weight),
                array(&dy),
                array(residual.as_ref().unwrap_or(&dy)),
                array(&dx),
                count as u32,
                width as u32,
                norm.epsilon as f32,
                residual.is_some(),
                norm.weight == NormWeight::OnePlus,
                units,
                [x.dtype.into(), weight.dtype.into()],
            );
        }
        wrap(dx)
    }
}

fn shape<R: CubeRuntime>(x: &CubeTensor<R>) -> [usize; 2] {
    let dims = dims(x);
    [dims[0], dims[1]]
}

/// `1 / √(mean(x²) + ε)` of the row that begins at `start`.
#[cube]
fn inverse_rms<F: Float>(
    x: &Array<F>,
    start: usize,
    width: u32,
    epsilon: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] units: u32,
) -> f32 {
    let mut squares = 0.0f32;
    let mut column = UNIT_POS;
    while column < width {
        let value = f32::cast_from(x[start + column as usize]);
        squares += value * value;
        column += units;
    }
    let sum = cube_sum(squares, shared, units);
    1.0f32 / (sum / f32::cast_from(width) + epsilon).sqrt()
}

/// What a column is multiplied by.
#[cube]
fn column_factor<W: Float>(weight: &Array<W>, column: u32, #[comptime] one_plus: bool) -> f32 {
    let mut factor = f32::cast_from(weight[column as usize]);
    if comptime!(one_plus) {
        factor += 1.0f32;
    }
    factor
}

#[cube(launch_unchecked)]
fn rms_norm_kernel<F: Float, W: Float>(
    x: &Array<F>,
    weight: &Array<W>,
    onto: &Array<F>,
    y: &mut Array<F>,
    rows: u32,
    width: u32,
    epsilon: f32,
    #[comptime] has_onto: bool,
    #[comptime] rounds_before: bool,
    #[comptime] one_plus: bool,
    #[comptime] units: u32,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    if CUBE_POS >= rows as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(units as usize));
    let start = CUBE_POS * width as usize;
    let inverse = inverse_rms::<F>(x, start, width, epsilon, &mut shared, units);
    let mut column = UNIT_POS;
    while column < width {
        let at = start + column as usize;
        let mut value = f32::cast_from(x[at]) * inverse;
        if comptime!(rounds_before) {
            value = f32::cast_from(F::cast_from(value));
        }
        value *= column_factor::<W>(weight, column, one_plus);
        if comptime!(has_onto) {
            value += f32::cast_from(onto[at]);
        }
        y[at] = F::cast_from(value);
        column += units;
    }
}

#[cube(launch_unchecked)]
fn rms_norm_backward_kernel<F: Float, W: Float>(
    x: &Array<F>,
    weight: &Array<W>,
    dy: &Array<F>,
    residual: &Array<F>,
    dx: &mut Array<F>,
    rows: u32,
    width: u32,
    epsilon: f32,
    #[comptime] has_residual: bool,
    #[comptime] one_plus: bool,
    #[comptime] units: u32,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    if CUBE_POS >= rows as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(units as usize));
    let start = CUBE_POS * width as usize;
    let inverse = inverse_rms::<F>(x, start, width, epsilon, &mut shared, units);
    let mut products = 0.0f32;
    let mut column = UNIT_POS;
    while column < width {
        let at = start + column as usize;
        let g = f32::cast_from(dy[at]) * column_factor::<W>(weight, column, one_plus);
        products += g * f32::cast_from(x[at]);
        column += units;
    }
    let mean = cube_sum(products, &mut shared, units) / f32::cast_from(width);
    let factor = inverse * inverse * mean;
    let mut column = UNIT_POS;
    while column < width {
        let at = start + column as usize;
        let g = f32::cast_from(dy[at]) * column_factor::<W>(weight, column, one_plus);
        let mut slope = inverse * (g - f32::cast_from(x[at]) * factor);
        if comptime!(has_residual) {
            slope += f32::cast_from(residual[at]);
        }
        dx[at] = F::cast_from(slope);
        column += units;
    }
}
