//! AdamW on a GPU, and the sum of squares: one unit for each element, and a cube for each part of a sum.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Factors;
use crate::cube::reduce::cube_sum;
use crate::cube::tensor::{array, cubes, elements, empty, in_place, units};

/// One parameter's update: parameter, gradient (absent: zero), first and second moment; what they become.
pub(crate) fn update<R: CubeRuntime>(
    parameter: CubeTensor<R>,
    gradient: Option<&CubeTensor<R>>,
    moments: [CubeTensor<R>; 2],
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
            array(&new),
            array(&new_first),
            array(&new_second),
            count as u32,
            factors.gradient,
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
    new: &mut Array<f32>,
    new_first: &mut Array<f32>,
    new_second: &mut Array<f32>,
    count: u32,
    gradient_factor: f32,
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
    let mut g = 0.0f32;
    if comptime!(has_gradient) {
        g = gradient[ABSOLUTE_POS] * gradient_factor;
    }
    let p = parameter[ABSOLUTE_POS] * decay;
    let m = first[ABSOLUTE_POS] + one_minus_beta_1 * (g - first[ABSOLUTE_POS]);
    let v = beta_2 * second[ABSOLUTE_POS] + one_minus_beta_2 * g * g;
    let root = v.sqrt() / root_correction + epsilon;
    new_first[ABSOLUTE_POS] = m;
    new_second[ABSOLUTE_POS] = v;
    new[ABSOLUTE_POS] = p + step_size * m / root;
}

/// Elements that one cube adds up.
const PART: u32 = 16_384;
const SUM_UNITS: u32 = 256;

/// Σ x² of all tensors, in f64 over parts summed in f32; one readback.
pub(crate) fn sum_of_squares<R: CubeRuntime>(tensors: &[CubeTensor<R>]) -> f64 {
    let parts = |tensor: &CubeTensor<R>| (elements(tensor) as u32).div_ceil(PART);
    let Some(like) = tensors.first() else { return 0.0 };
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
    // A device that fails gives no number, as a sum that is none does.
    like.client.read_one(sums.handle).map_or(f64::NAN, |bytes| {
        bytemuck::cast_slice::<u8, f32>(&bytes).iter().map(|sum| f64::from(*sum)).sum()
    })
}

#[cube(launch_unchecked)]
fn sum_of_squares_kernel(x: &Array<f32>, sums: &mut Array<f32>, count: u32, parts: u32, start: u32) {
    if CUBE_POS >= parts as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(256usize);
    let first = CUBE_POS as u32 * PART;
    let end = min(first + PART, count);
    let mut at = first + UNIT_POS;
    // Compensated: 64 squares a unit, as exact as f32 can add them.
    let mut sum = 0.0f32;
    let mut lost = 0.0f32;
    while at < end {
        let square = x[at as usize] * x[at as usize] - lost;
        let next = sum + square;
        lost = (next - sum) - square;
        sum = next;
        at += SUM_UNITS;
    }
    let sum = cube_sum(sum, &mut shared, SUM_UNITS);
    if UNIT_POS == 0 {
        sums[start as usize + CUBE_POS] = sum;
    }
}
