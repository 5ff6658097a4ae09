//! Layer norm on a GPU: one cube for each row.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::Tensor;
use cubecl::prelude::*;

use super::LayerNormOps;
use crate::cube::reduce::cube_sum;
use crate::cube::tensor::{array, dims, empty_like, float, into_float, rows, wrap};

impl<R, F, I, T> LayerNormOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn frozen_layer_norm(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        bias: Option<&Tensor<Self, 1>>,
        epsilon: f64,
        onto: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        let (x, weight, bias, onto) = (float(x), float(weight), bias.map(float), onto.map(float));
        let y = empty_like(&x);
        let [count, width] = shape(&x);
        let (cubes, units) = rows(count, width);
        // SAFETY: every unit stays below `rows · width`; without `onto` or a bias their places are taken by tensors that are
        // not read.
        unsafe {
            layer_norm_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                CubeDim::new_1d(units),
                array(&x),
                array(&weight),
                array(bias.as_ref().unwrap_or(&weight)),
                array(onto.as_ref().unwrap_or(&x)),
                array(&y),
                count as u32,
                width as u32,
                epsilon as f32,
                bias.is_some(),
                onto.is_some(),
                units,
                [x.dtype.into(), weight.dtype.into()],
            );
        }
        wrap(y)
    }

    fn frozen_layer_norm_backward(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        epsilon: f64,
        dy: Tensor<Self, 2>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        let (x, weight, dy, residual) = (float(x), float(weight), into_float(dy), residual.map(float));
        let dx = empty_like(&x);
        let [count, width] = shape(&x);
        let (cubes, units) = rows(count, width);
        // SAFETY: as above; so for a residual.
        unsafe {
            layer_norm_backward_kernel::launch_unchecked::<R>(
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
                epsilon as f32,
                residual.is_some(),
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

/// Mean of the row that begins at `start`, and `1 / √(variance + ε)`.
#[cube]
fn moments<F: Float>(
    x: &Array<F>,
    start: usize,
    width: u32,
    epsilon: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] units: u32,
) -> (f32, f32) {
    let count = f32::cast_from(width);
    let mut sum = 0.0f32;
    let mut column = UNIT_POS;
    while column < width {
        sum += f32::cast_from(x[start + column as usize]);
        column += units;
    }
    let mean = cube_sum(sum, shared, units) / count;
    let mut squares = 0.0f32;
    let mut column = UNIT_POS;
    while column < width {
        let value = f32::cast_from(x[start + column as usize]) - mean;
        squares += value * value;
        column += units;
    }
    let variance = cube_sum(squares, shared, units) / count;
    (mean, 1.0f32 / (variance + epsilon).sqrt())
}

#[cube(launch_unchecked)]
fn layer_norm_kernel<F: Float, W: Float>(
    x: &Array<F>,
    weight: &Array<W>,
    bias: &Array<W>,
    onto: &Array<F>,
    y: &mut Array<F>,
    rows: u32,
    width: u32,
    epsilon: f32,
    #[comptime] has_bias: bool,
    #[comptime] has_onto: bool,
    #[comptime] units: u32,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    if CUBE_POS >= rows as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(units as usize));
    let start = CUBE_POS * width as usize;
    let (mean, inverse) = moments::<F>(x, start, width, epsilon, &mut shared, units);
    let mut column = UNIT_POS;
    while column < width {
        let at = start + column as usize;
        let mut value = (f32::cast_from(x[at]) - mean) * inverse * f32::cast_from(weight[column as usize]);
        if comptime!(has_bias) {
            value += f32::cast_from(bias[column as usize]);
        }
        if comptime!(has_onto) {
            value += f32::cast_from(onto[at]);
        }
        y[at] = F::cast_from(value);
        column += units;
    }
}

#[cube(launch_unchecked)]
fn layer_norm_backward_kernel<F: Float, W: Float>(
    x: &Array<F>,
    weight: &Array<W>,
    dy: &Array<F>,
    residual: &Array<F>,
    dx: &mut Array<F>,
    rows: u32,
    width: u32,
    epsilon: f32,
    #[comptime] has_residual: bool,
    #[comptime] units: u32,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    if CUBE_POS >= rows as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(units as usize));
    let start = CUBE_POS * width as usize;
    let (mean, inverse) = moments::<F>(x, start, width, epsilon, &mut shared, units);
    let mut sum = 0.0f32;
    let mut products = 0.0f32;
    let mut column = UNIT_POS;
    while column < width {
        let at = start + column as usize;
        let g = f32::cast_from(dy[at]) * f32::cast_from(weight[column as usize]);
        sum += g;
        products += g * (f32::cast_from(x[at]) - mean) * inverse;
        column += units;
    }
    let level = cube_sum(sum, &mut shared, units) / f32::cast_from(width);
    let along = cube_sum(products, &mut shared, units) / f32::cast_from(width);
    let mut column = UNIT_POS;
    while column < width {
        let at = start + column as usize;
        let g = f32::cast_from(dy[at]) * f32::cast_from(weight[column as usize]);
        let normalised = (f32::cast_from(x[at]) - mean) * inverse;
        let mut slope = inverse * (g - level - normalised * along);
        if comptime!(has_residual) {
            slope += f32::cast_from(residual[at]);
        }
        dx[at] = F::cast_from(slope);
        column += units;
    }
}
