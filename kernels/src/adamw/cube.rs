//! AdamW on a GPU, and the norm: one unit for each element, and a cube for each part of a sum.
//!
//! What gradients are multiplied by is a number on the device: negative where nothing may change.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{CLIP_EPSILON, Factors};
use crate::cube::reduce::cube_sum;
use crate::cube::tensor::{array, cubes, elements, empty, in_place, units};

/// One parameter's update: parameter, gradient (absent: zero), first and second moment; what they become.
pub(crate) fn update<R: CubeRuntime>(
    parameter: CubeTensor<R>,
    gradient: Option<&CubeTensor<R>>,
    moments: [CubeTensor<R>; 2],
    gradient_factor: &CubeTensor<R>,
    factors: Factors,
) -> (CubeTensor<R>, [CubeTensor<R>; 2]) {
    let [first, second] = moments;
    let (new, new_first, new_second) = (in_place(&parameter), in_place(&first), in_place(&second));
    let count = elements(&parameter);
    let (cubes, dim) = units(count);
    // SAFETY: units from `count` on do nothing, and an element is read before the same unit writes it.
    unsafe {
        adamw_kernel::launch_unchecked::<R>(
            &parameter.client,
            cubes,
            dim,
            array(&parameter),
            array(gradient.unwrap_or(&parameter)),
            array(&first),
            array(&second),
            array(gradient_factor),
            array(&new),
            array(&new_first),
            array(&new_second),
            count as u32,
            factors.decay,
            factors.first,
            factors.beta_2,
            factors.second,
            factors.step_size,
            factors.root_correction,
            factors.epsilon,
            gradient.is_some(),
        );
    }
    (new, [new_first, new_second])
}

#[cube(launch_unchecked)]
fn adamw_kernel(
    parameter: &Array<f32>,
    gradient: &Array<f32>,
    first: &Array<f32>,
    second: &Array<f32>,
    gradient_factor: &Array<f32>,
    new: &mut Array<f32>,
    new_first: &mut Array<f32>,
    new_second: &mut Array<f32>,
    count: u32,
    decay: f32,
    one_minus_beta_1: f32,
    beta_2: f32,
    one_minus_beta_2: f32,
    step_size: f32,
    root_correction: f32,
    epsilon: f32,
    #[comptime] has_gradient: bool,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let factor = gradient_factor[0];
    let p = parameter[ABSOLUTE_POS];
    let m = first[ABSOLUTE_POS];
    let v = second[ABSOLUTE_POS];
    if factor < 0.0f32 {
        new[ABSOLUTE_POS] = p;
        new_first[ABSOLUTE_POS] = m;
        new_second[ABSOLUTE_POS] = v;
    } else {
        let mut g = 0.0f32;
        if comptime!(has_gradient) {
            g = gradient[ABSOLUTE_POS] * factor;
        }
        let m = m + one_minus_beta_1 * (g - m);
        let v = beta_2 * v + one_minus_beta_2 * g * g;
        let root = v.sqrt() / root_correction + epsilon;
        new_first[ABSOLUTE_POS] = m;
        new_second[ABSOLUTE_POS] = v;
        new[ABSOLUTE_POS] = p * decay + step_size * m / root;
    }
}

/// What each gradient is multiplied by, `[1]`; negative when nothing may change.
pub(crate) fn gradient_factor<R: CubeRuntime>(
    numbers: &CubeTensor<R>,
    scale: f64,
    max_norm: f64,
) -> CubeTensor<R> {
    let factor = empty(numbers, &[1], burn::tensor::DType::F32);
    // SAFETY: one unit, which reads the numbers there are and writes the one that is.
    unsafe {
        factor_kernel::launch_unchecked::<R>(
            &numbers.client,
            cubes(1),
            CubeDim::new_1d(1),
            array(numbers),
            array(&factor),
            elements(numbers) as u32,
            scale as f32,
            max_norm as f32,
            CLIP_EPSILON as f32,
        );
    }
    factor
}

#[cube(launch_unchecked)]
fn factor_kernel(
    numbers: &Array<f32>,
    factor: &mut Array<f32>,
    count: u32,
    scale: f32,
    max_norm: f32,
    epsilon: f32,
) {
    // By their bits: a compiler may take comparisons to be of numbers.
    let mut is_finite = true;
    for index in 0..count {
        let exponent = u32::reinterpret(numbers[index as usize]) & 0x7F80_0000u32;
        if exponent == 0x7F80_0000u32 {
            is_finite = false;
        }
    }
    let mut found = f32::new(-1.0);
    if is_finite {
        found = scale;
        if max_norm > 0.0f32 {
            let clipping = max_norm / (scale * numbers[count as usize - 1] + epsilon);
            found = scale * min(clipping, 1.0f32);
        }
    }
    factor[0] = found;
}

/// Elements that one cube adds up.
const PART: u32 = 16_384;
const SUM_UNITS: u32 = 256;

/// √(Σ x²) of all tensors, `[1]`: of sums over parts, all in compensated f32.
pub(crate) fn norm<R: CubeRuntime>(tensors: &[CubeTensor<R>]) -> CubeTensor<R> {
    let parts = |tensor: &CubeTensor<R>| (elements(tensor) as u32).div_ceil(PART);
    let like = &tensors[0];
    let total: u32 = tensors.iter().map(parts).sum();
    let sums = empty(like, &[total as usize], burn::tensor::DType::F32);
    let mut start = 0;
    for tensor in tensors {
        let parts = parts(tensor);
        // SAFETY: cubes from `parts` on do nothing, elements from the tensor's end on are not read.
        unsafe {
            sum_of_squares_kernel::launch_unchecked::<R>(
                &like.client,
                cubes(parts),
                CubeDim::new_1d(SUM_UNITS),
                array(tensor),
                array(&sums),
                elements(tensor) as u32,
                parts,
                start,
            );
        }
        start += parts;
    }
    let norm = empty(like, &[1], burn::tensor::DType::F32);
    // SAFETY: one cube, which reads the `total` sums there are.
    unsafe {
        root_kernel::launch_unchecked::<R>(
            &like.client,
            cubes(1),
            CubeDim::new_1d(SUM_UNITS),
            array(&sums),
            array(&norm),
            total,
        );
    }
    norm
}

#[cube(launch_unchecked)]
fn sum_of_squares_kernel(x: &Array<f32>, sums: &mut Array<f32>, count: u32, parts: u32, start: u32) {
    if CUBE_POS >= parts as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(256usize);
    let first = CUBE_POS as u32 * PART;
    let sum = unit_sum(x, first, min(first + PART, count), true);
    let sum = cube_sum(sum, &mut shared, SUM_UNITS);
    if UNIT_POS == 0 {
        sums[start as usize + CUBE_POS] = sum;
    }
}

#[cube(launch_unchecked)]
fn root_kernel(sums: &Array<f32>, root: &mut Array<f32>, count: u32) {
    let mut shared = SharedMemory::<f32>::new(256usize);
    let sum = cube_sum(unit_sum(sums, 0u32, count, false), &mut shared, SUM_UNITS);
    if UNIT_POS == 0 {
        root[0] = sum.sqrt();
    }
}

/// A unit's share of Σ x, or of Σ x², from `first` to `end`. Compensated: as exact as f32 can add.
#[cube]
fn unit_sum(x: &Array<f32>, first: u32, end: u32, #[comptime] squares: bool) -> f32 {
    let mut at = first + UNIT_POS;
    let mut sum = 0.0f32;
    let mut lost = 0.0f32;
    while at < end {
        let mut value = x[at as usize];
        if comptime!(squares) {
            value = value * value;
        }
        let part = value - lost;
        let next = sum + part;
        lost = (next - sum) - part;
        sum = next;
        at += SUM_UNITS;
    }
    sum
}
