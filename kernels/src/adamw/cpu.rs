//! AdamW on the CPU: one pass over parameter, gradient and moments.

use burn_flex::{Flex, FlexTensor};
use burn_tensor::{DType, Tensor, TensorData};

use super::{AdamWConfig, AdamWOps, CLIP_EPSILON, Factors, Guard, Moments, Update};
use crate::cpu::scalar::{widen, with_float};
use crate::cpu::{parallel, pool, tensor, vectorized};

/// Elements per task.
const TASK: usize = 1 << 14;

impl AdamWOps for Flex {
    fn adamw(
        updates: Vec<Update<Flex>>,
        guard: &Guard<Flex>,
        config: &AdamWConfig,
        learning_rate: f64,
        step: u64,
    ) -> Vec<(Tensor<Flex, 2>, Moments<Flex>)> {
        let Some(factor) = gradient_factor(guard) else {
            return updates.into_iter().map(|update| (update.parameter, update.moments)).collect();
        };
        let factors = Factors::new(config, learning_rate, step);
        let mut states: Vec<_> = updates
            .into_iter()
            .map(|Update { parameter, gradient, moments }| {
                let state = [parameter, moments.first, moments.second].map(owned);
                (state, gradient.map(tensor::primitive))
            })
            .collect();
        let mut tasks = Vec::new();
        let mut work = 0;
        for (state, gradient) in &mut states {
            let gradient = gradient.as_ref().map_or(&[][..], |gradient| gradient.storage::<f32>());
            let [parameter, first, second] = state.each_mut().map(FlexTensor::storage_mut::<f32>);
            work += 4 * parameter.len();
            let chunks = parameter.chunks_mut(TASK).zip(first.chunks_mut(TASK)).zip(second.chunks_mut(TASK));
            tasks.extend(chunks.enumerate().map(|(index, ((parameter, first), second))| {
                (parameter, first, second, gradient.get(index * TASK..).unwrap_or(&[]))
            }));
        }
        parallel::for_each(tasks, work, |(parameter, first, second, gradient)| match gradient {
            [] => decay_run(parameter, first, second, factors),
            gradient => update_run(parameter, first, second, gradient, factor, factors),
        });
        states
            .into_iter()
            .map(|([parameter, first, second], _)| {
                let moments = Moments { first: tensor::from_flex(first), second: tensor::from_flex(second) };
                (tensor::from_flex(parameter), moments)
            })
            .collect()
    }

    fn norm(tensors: &[&Tensor<Flex, 2>]) -> Tensor<Flex, 1> {
        let sum: f64 = tensors.iter().map(|tensor| sum_of_squares(tensor)).sum();
        Tensor::from_data(TensorData::from([sum.sqrt() as f32]), (&tensors[0].device(), DType::F32))
    }
}

/// What each gradient is multiplied by; `None` when nothing may change.
fn gradient_factor(guard: &Guard<Flex>) -> Option<f32> {
    let numbers = tensor::primitive(guard.numbers.clone());
    let numbers = numbers.storage::<f32>();
    let norm = guard.scale * f64::from(*numbers.last()?);
    let clipping = if guard.max_norm > 0.0 { (guard.max_norm / (norm + CLIP_EPSILON)).min(1.0) } else { 1.0 };
    numbers.iter().all(|number| number.is_finite()).then_some((guard.scale * clipping) as f32)
}

/// An f32 primitive to be written into.
fn owned(tensor: Tensor<Flex, 2>) -> FlexTensor {
    assert_eq!(tensor.dtype(), DType::F32, "adamw: parameters and moments are f32");
    tensor::owned(tensor)
}

vectorized! {
    fn update_run(parameter: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32], factor: f32, factors: Factors) {
        for (((p, m), v), g) in parameter.iter_mut().zip(first).zip(second).zip(gradient) {
            let g = g * factor;
            *m += factors.first * (g - *m);
            *v = *v * factors.beta_2 + factors.second * g * g;
            let denominator = v.sqrt() / factors.root_correction + factors.epsilon;
            *p = *p * factors.decay + factors.step_size * *m / denominator;
        }
    }

    /// [`update_run`] for a gradient of zero.
    fn decay_run(parameter: &mut [f32], first: &mut [f32], second: &mut [f32], factors: Factors) {
        for ((p, m), v) in parameter.iter_mut().zip(first).zip(second) {
            *m -= factors.first * *m;
            *v *= factors.beta_2;
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

/// Σ x² in f64.
fn sum_of_squares(tensor: &Tensor<Flex, 2>) -> f64 {
    let tensor = tensor::primitive(tensor.clone());
    with_float!(tensor.dtype(), T => {
        let values = tensor.storage::<T>();
        let mut sums = vec![0.0f64; values.len().div_ceil(TASK)];
        let tasks = values.chunks(TASK).zip(&mut sums).collect();
        parallel::for_each(tasks, values.len(), |(values, sum)| {
            let mut wide = pool::take::<f32>(values.len());
            widen(values, &mut wide);
            *sum = sum_of_squares_run(&wide);
        });
        sums.iter().sum()
    })
}
