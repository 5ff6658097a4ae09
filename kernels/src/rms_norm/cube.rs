//! RMS norm on a GPU: one cube for each row, which it reads by vectors.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::Tensor;
use cubecl::prelude::*;

use super::{NormWeight, RmsNorm, RmsNormOps, Rounding};
use crate::cube::reduce::cube_sum;
use crate::cube::tensor::{array_of, dims, empty_like, float, into_float, rows, vector_size, wrap};

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
        let Shape { count, width, vector } = shape(&x, &weight);
        let (cubes, units) = rows(count, 4 * width);
        // SAFETY: every unit stays below `rows · width`; without `onto` its place is taken by a tensor that is not read.
        unsafe {
            rms_norm_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                CubeDim::new_1d(units),
                vector,
                array_of(&x, vector),
                array_of(&weight, vector),
                array_of(onto.as_ref().unwrap_or(&x), vector),
                array_of(&y, vector),
                count as u32,
                width as u32,
                norm.epsilon as f32,
                onto.is_some(),
                norm.rounding == Rounding::BeforeWeight,
                norm.weight == NormWeight::OnePlus,
                units,
                vector as u32,
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
        let Shape { count, width, vector } = shape(&x, &weight);
        let (cubes, units) = rows(count, 4 * width);
        // SAFETY: as above; so for a residual.
        unsafe {
            rms_norm_backward_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                CubeDim::new_1d(units),
                vector,
                array_of(&x, vector),
                array_of(&weight, vector),
                array_of(&dy, vector),
                array_of(residual.as_ref().unwrap_or(&dy), vector),
                array_of(&dx, vector),
                count as u32,
                width as u32,
                norm.epsilon as f32,
                residual.is_some(),
                norm.weight == NormWeight::OnePlus,
                units,
                vector as u32,
                [x.dtype.into(), weight.dtype.into()],
            );
        }
        wrap(dx)
    }
}

/// Rows, their vectors, and the size of those, which the dtypes of x and the weight both have.
struct Shape {
    count: usize,
    width: usize,
    vector: usize,
}

fn shape<R: CubeRuntime>(x: &CubeTensor<R>, weight: &CubeTensor<R>) -> Shape {
    let dims = dims(x);
    let vector = [x, weight].map(|tensor| vector_size(&x.client, tensor.dtype, &[dims[1]]));
    let vector = vector[0].min(vector[1]);
    Shape { count: dims[0], width: dims[1] / vector, vector }
}

/// Σ of a vector's elements.
#[cube]
fn sum<N: Size>(values: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for lane in 0..values.vector_size() {
        sum += values[lane];
    }
    sum
}

/// `1 / √(mean(x²) + ε)` of the row that begins at `start`.
#[cube]
fn inverse_rms<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    start: usize,
    width: u32,
    epsilon: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] units: u32,
    #[comptime] vector: u32,
) -> f32 {
    let mut squares = 0.0f32;
    let mut column = UNIT_POS;
    while column < width {
        let value = Vector::<f32, N>::cast_from(x[start + column as usize]);
        squares += sum::<N>(value * value);
        column += units;
    }
    let sum = cube_sum(squares, shared, units);
    1.0f32 / (sum / f32::cast_from(width * vector) + epsilon).sqrt()
}

/// What columns are multiplied by.
#[cube]
fn column_factors<W: Float, N: Size>(
    weight: &Array<Vector<W, N>>,
    column: u32,
    #[comptime] one_plus: bool,
) -> Vector<f32, N> {
    let mut factors = Vector::<f32, N>::cast_from(weight[column as usize]);
    if comptime!(one_plus) {
        factors += Vector::new(1.0f32);
    }
    factors
}

#[cube(launch_unchecked)]
fn rms_norm_kernel<F: Float, W: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    weight: &Array<Vector<W, N>>,
    onto: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    rows: u32,
    width: u32,
    epsilon: f32,
    #[comptime] has_onto: bool,
    #[comptime] rounds_before: bool,
    #[comptime] one_plus: bool,
    #[comptime] units: u32,
    #[comptime] vector: u32,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    if CUBE_POS >= rows as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(units as usize));
    let start = CUBE_POS * width as usize;
    let inverse = inverse_rms::<F, N>(x, start, width, epsilon, &mut shared, units, vector);
    let mut column = UNIT_POS;
    while column < width {
        let at = start + column as usize;
        let mut value = Vector::<f32, N>::cast_from(x[at]) * Vector::new(inverse);
        if comptime!(rounds_before) {
            value = Vector::cast_from(Vector::<F, N>::cast_from(value));
        }
        value *= column_factors::<W, N>(weight, column, one_plus);
        if comptime!(has_onto) {
            value += Vector::cast_from(onto[at]);
        }
        y[at] = Vector::cast_from(value);
        column += units;
    }
}

#[cube(launch_unchecked)]
fn rms_norm_backward_kernel<F: Float, W: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    weight: &Array<Vector<W, N>>,
    dy: &Array<Vector<F, N>>,
    residual: &Array<Vector<F, N>>,
    dx: &mut Array<Vector<F, N>>,
    rows: u32,
    width: u32,
    epsilon: f32,
    #[comptime] has_residual: bool,
    #[comptime] one_plus: bool,
    #[comptime] units: u32,
    #[comptime] vector: u32,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    if CUBE_POS >= rows as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(units as usize));
    let start = CUBE_POS * width as usize;
    let inverse = inverse_rms::<F, N>(x, start, width, epsilon, &mut shared, units, vector);
    let mut products = 0.0f32;
    let mut column = UNIT_POS;
    while column < width {
        let at = start + column as usize;
        let g = Vector::<f32, N>::cast_from(dy[at]) * column_factors::<W, N>(weight, column, one_plus);
        products += sum::<N>(g * Vector::cast_from(x[at]));
        column += units;
    }
    let mean = cube_sum(products, &mut shared, units) / f32::cast_from(width * vector);
    let factor = inverse * inverse * mean;
    let mut column = UNIT_POS;
    while column < width {
        let at = start + column as usize;
        let g = Vector::<f32, N>::cast_from(dy[at]) * column_factors::<W, N>(weight, column, one_plus);
        let x = Vector::<f32, N>::cast_from(x[at]);
        let mut slope = (g - x * Vector::new(factor)) * Vector::new(inverse);
        if comptime!(has_residual) {
            slope += Vector::cast_from(residual[at]);
        }
        dx[at] = Vector::cast_from(slope);
        column += units;
    }
}
