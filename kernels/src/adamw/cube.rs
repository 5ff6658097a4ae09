//! AdamW on a GPU, and the norm: many tensors a launch, for a model has hundreds of small ones.
//!
//! A launch has a column of cubes for each tensor. What gradients are multiplied by is a number on the device: negative
//! where nothing may change.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};
use cubecl::prelude::*;

use super::{AdamWConfig, AdamWOps, CLIP_EPSILON, Factors, Guard, Moments, Update};
use crate::cube::convert::scaled;
use crate::cube::reduce::cube_sum;
use crate::cube::tensor::{UNITS, array, columns, cubes, elements, empty, float, into_float, many, wrap};

impl<R, F, I, T> AdamWOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn adamw(
        updates: Vec<Update<Self>>,
        guard: &Guard<Self>,
        config: &AdamWConfig,
        learning_rate: f64,
        step: u64,
    ) -> Vec<(Tensor<Self, 2>, Moments<Self>)> {
        let factors = Factors::new(config, learning_rate, step);
        let factor = gradient_factor(&float(&guard.numbers), guard.scale, guard.max_norm);
        let trained = |Update { parameter, gradient, moments }: Update<Self>| Trained {
            parameter: into_float(parameter),
            gradient: gradient.map(into_float),
            moments: [into_float(moments.first), into_float(moments.second)],
        };
        let updated = |(parameter, [first, second]): (CubeTensor<R>, [CubeTensor<R>; 2])| {
            (wrap(parameter), Moments { first: wrap(first), second: wrap(second) })
        };
        let trained = updates.into_iter().map(trained).collect();
        update(trained, &factor, factors).into_iter().map(updated).collect()
    }

    fn norm(tensors: &[&Tensor<Self, 2>]) -> Tensor<Self, 1> {
        let tensors: Vec<_> = tensors.iter().map(|tensor| float(tensor)).collect();
        wrap(norm(&tensors))
    }
}

/// A parameter, its gradient (absent: zero), its first and second moment.
struct Trained<R: CubeRuntime> {
    parameter: CubeTensor<R>,
    gradient: Option<CubeTensor<R>>,
    moments: [CubeTensor<R>; 2],
}

/// Updates all of `trained`; tensors held by this call alone are updated in place.
fn update<R: CubeRuntime>(
    mut trained: Vec<Trained<R>>,
    gradient_factor: &CubeTensor<R>,
    factors: Factors,
) -> Vec<(CubeTensor<R>, [CubeTensor<R>; 2])> {
    for Trained { parameter, moments: [first, second], .. } in &mut trained {
        for tensor in [parameter, first, second] {
            if !tensor.can_mut() {
                *tensor = scaled(tensor, 1.0, DType::F32);
            }
        }
    }
    let client = &gradient_factor.client;
    for alike in trained.chunk_by(|a, b| a.gradient.is_some() == b.gradient.is_some()) {
        for together in alike.chunks(many(client, 4)) {
            let argument = |one: &Trained<R>| {
                TrainedDataLaunch::new(
                    array(&one.parameter),
                    array(one.gradient.as_ref().unwrap_or(&one.parameter)),
                    array(&one.moments[0]),
                    array(&one.moments[1]),
                    elements(&one.parameter) as u32,
                )
            };
            let most = together.iter().map(|one| elements(&one.parameter) as u32).max().unwrap_or(0);
            let (cubes, dim) = columns(most, together.len());
            // SAFETY: a unit stays below the elements of its tensor, and reads each of them before it writes it.
            unsafe {
                adamw_kernel::launch_unchecked::<R>(
                    client,
                    cubes,
                    dim,
                    together.iter().map(argument).collect(),
                    array(gradient_factor),
                    factors.decay,
                    factors.first,
                    factors.beta_2,
                    factors.second,
                    factors.step_size,
                    factors.root_correction,
                    factors.epsilon,
                    alike[0].gradient.is_some(),
                );
            }
        }
    }
    trained.into_iter().map(|one| (one.parameter, one.moments)).collect()
}

/// [`Trained`] in a kernel.
#[derive(CubeType, CubeLaunch)]
struct TrainedData {
    parameter: Array<f32>,
    gradient: Array<f32>,
    first: Array<f32>,
    second: Array<f32>,
    count: u32,
}

#[cube(launch_unchecked)]
fn adamw_kernel(
    trained: &mut Sequence<TrainedData>,
    gradient_factor: &Array<f32>,
    decay: f32,
    one_minus_beta_1: f32,
    beta_2: f32,
    one_minus_beta_2: f32,
    step_size: f32,
    root_correction: f32,
    epsilon: f32,
    #[comptime] has_gradient: bool,
) {
    let factor = gradient_factor[0];
    if factor < 0.0f32 {
        terminate!();
    }
    #[unroll]
    for index in 0..trained.len() {
        if CUBE_POS_Y == index as u32 {
            let one = trained.index_mut(index);
            let mut at = CUBE_POS_X * UNITS + UNIT_POS;
            while at < one.count {
                let here = at as usize;
                let mut g = 0.0f32;
                if comptime!(has_gradient) {
                    g = one.gradient[here] * factor;
                }
                let m = one.first[here];
                let m = m + one_minus_beta_1 * (g - m);
                let v = beta_2 * one.second[here] + one_minus_beta_2 * g * g;
                let root = v.sqrt() / root_correction + epsilon;
                one.first[here] = m;
                one.second[here] = v;
                one.parameter[here] = one.parameter[here] * decay + step_size * m / root;
                at += CUBE_COUNT_X * UNITS;
            }
        }
    }
}

/// What each gradient is multiplied by, `[1]`; negative when nothing may change.
fn gradient_factor<R: CubeRuntime>(numbers: &CubeTensor<R>, scale: f64, max_norm: f64) -> CubeTensor<R> {
    let factor = empty(numbers, &[1], DType::F32);
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

/// √(Σ x²) of all tensors, `[1]`: of sums over parts, all in compensated f32.
fn norm<R: CubeRuntime>(tensors: &[CubeTensor<R>]) -> CubeTensor<R> {
    let parts = |tensor: &CubeTensor<R>| (elements(tensor) as u32).div_ceil(PART);
    let like = &tensors[0];
    let total: u32 = tensors.iter().map(parts).sum();
    let sums = empty(like, &[total as usize], DType::F32);
    let mut start = 0;
    for together in tensors.chunks(many(&like.client, 1)) {
        // A cube for each part.
        let (grid, dim) = columns(together.iter().map(parts).max().unwrap_or(0) * UNITS, together.len());
        let argument = |tensor: &CubeTensor<R>| {
            let first = start;
            start += parts(tensor);
            SummedLaunch::new(array(tensor), elements(tensor) as u32, first)
        };
        let arguments = together.iter().map(argument).collect();
        // SAFETY: elements from a tensor's end on are not read, and parts that it has not are not written.
        unsafe {
            sum_of_squares_kernel::launch_unchecked::<R>(&like.client, grid, dim, arguments, array(&sums));
        }
    }
    let norm = empty(like, &[1], DType::F32);
    // SAFETY: one cube, which reads the `total` sums there are.
    unsafe {
        root_kernel::launch_unchecked::<R>(
            &like.client,
            cubes(1),
            CubeDim::new_1d(UNITS),
            array(&sums),
            array(&norm),
            total,
        );
    }
    norm
}

/// A tensor whose squares are added up, in a kernel.
#[derive(CubeType, CubeLaunch)]
struct Summed {
    x: Array<f32>,
    count: u32,
    /// Where the sums of its parts begin.
    start: u32,
}

#[cube(launch_unchecked)]
fn sum_of_squares_kernel(tensors: &Sequence<Summed>, sums: &mut Array<f32>) {
    let mut shared = SharedMemory::<f32>::new(256usize);
    #[unroll]
    for index in 0..tensors.len() {
        if CUBE_POS_Y == index as u32 {
            let tensor = tensors.index(index);
            let mut part = CUBE_POS_X;
            while part * PART < tensor.count {
                let first = part * PART;
                let sum = unit_sum(&tensor.x, first, min(first + PART, tensor.count), true);
                let sum = cube_sum(sum, &mut shared, UNITS);
                if UNIT_POS == 0 {
                    sums[(tensor.start + part) as usize] = sum;
                }
                // The next part takes the same memory.
                sync_cube();
                part += CUBE_COUNT_X;
            }
        }
    }
}

#[cube(launch_unchecked)]
fn root_kernel(sums: &Array<f32>, root: &mut Array<f32>, count: u32) {
    let mut shared = SharedMemory::<f32>::new(256usize);
    let sum = cube_sum(unit_sum(sums, 0u32, count, false), &mut shared, UNITS);
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
        at += UNITS;
    }
    sum
}
