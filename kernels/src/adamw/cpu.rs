//! AdamW on the CPU: one pass over parameter, gradient and moments.

use burn::tensor::{DType, Tensor};
use burn_flex::{Flex, FlexTensor};

use super::{AdamWConfig, Moments};
use crate::cpu::scalar::{widen, with_float};
use crate::cpu::{parallel, scratch, tensor, vectorized};

/// Elements per task.
const TASK: usize = 1 << 14;

/// `adamw` of the CPU backend.
pub(crate) fn update(
    parameter: Tensor<Flex, 2>,
    gradient: Tensor<Flex, 2>,
    moments: Moments<Flex>,
    config: &AdamWConfig,
    learning_rate: f64,
    step: u64,
) -> (Tensor<Flex, 2>, Moments<Flex>) {
    let [mut parameter, mut first, mut second] = [parameter, moments.first, moments.second].map(owned);
    let gradient = tensor::primitive(gradient);
    let gradient = tensor::floats(&gradient);
    let factors = Factors::new(config, learning_rate, step);
    {
        let [parameter, first, second] =
            [&mut parameter, &mut first, &mut second].map(FlexTensor::storage_mut::<f32>);
        let work = 4 * parameter.len();
        let state = parameter.chunks_mut(TASK).zip(first.chunks_mut(TASK)).zip(second.chunks_mut(TASK));
        let tasks = state.zip(gradient.chunks(TASK)).collect();
        parallel::for_each(tasks, work, |(((parameter, first), second), gradient)| {
            update_run(parameter, first, second, gradient, factors);
        });
    }
    (
        tensor::from_flex(parameter),
        Moments { first: tensor::from_flex(first), second: tensor::from_flex(second) },
    )
}

/// A contiguous f32 primitive, still the only owner of its storage if it was.
fn owned(tensor: Tensor<Flex, 2>) -> FlexTensor {
    let tensor = tensor.into_primitive().tensor();
    assert_eq!(tensor.dtype(), DType::F32, "adamw: parameters and moments are f32");
    let elements = tensor.layout().num_elements();
    let whole =
        tensor.is_contiguous() && tensor.layout().start_offset() == 0 && tensor.bytes().len() == 4 * elements;
    if whole { tensor } else { tensor.to_contiguous() }
}

/// The scalars of one step.
#[derive(Clone, Copy)]
struct Factors {
    decay: f32,
    /// 1 − β₁.
    first: f32,
    beta_2: f32,
    /// 1 − β₂.
    second: f32,
    /// √(1 − β₂ᵗ).
    root_correction: f32,
    epsilon: f32,
    /// −η / (1 − β₁ᵗ).
    step_size: f32,
}

impl Factors {
    fn new(config: &AdamWConfig, learning_rate: f64, step: u64) -> Self {
        let AdamWConfig { beta_1, beta_2, epsilon, weight_decay } = *config;
        let correction_1 = 1.0 - beta_1.powf(step as f64);
        let correction_2 = 1.0 - beta_2.powf(step as f64);
        Self {
            decay: (1.0 - learning_rate * weight_decay) as f32,
            first: (1.0 - beta_1) as f32,
            beta_2: beta_2 as f32,
            second: (1.0 - beta_2) as f32,
            root_correction: correction_2.sqrt() as f32,
            epsilon: epsilon as f32,
            step_size: (-learning_rate / correction_1) as f32,
        }
    }
}

vectorized! {
    fn update_run(parameter: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32], factors: Factors) {
        for (((p, m), v), g) in parameter.iter_mut().zip(first).zip(second).zip(gradient) {
            *m += factors.first * (g - *m);
            *v = *v * factors.beta_2 + factors.second * g * g;
            let denominator = v.sqrt() / factors.root_correction + factors.epsilon;
            *p = *p * factors.decay + factors.step_size * *m / denominator;
        }
    }

    fn sum_of_squares_run(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let runs = x.chunks_exact(8);
        let tail: f64 = runs.remainder().iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        for run in runs {
            for (lane, x) in lanes.iter_mut().zip(run) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        lanes.iter().sum::<f64>() + tail
    }
}

/// `sum_of_squares` of the CPU backend.
pub(crate) fn sum_of_squares(tensor: &Tensor<Flex, 2>) -> f64 {
    let tensor = tensor::primitive(tensor.clone());
    with_float!(tensor.dtype(), T => {
        let values = tensor.storage::<T>();
        let mut sums = vec![0.0f64; values.len().div_ceil(TASK)];
        let tasks = values.chunks(TASK).zip(&mut sums).collect();
        parallel::for_each(tasks, values.len(), |(values, sum)| {
            let mut wide = scratch::take(values.len());
            widen(values, &mut wide);
            *sum = sum_of_squares_run(&wide);
        });
        sums.iter().sum()
    })
}
