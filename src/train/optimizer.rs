//! AdamW over all adapters, after clipping by the norm of all their gradients together.
//!
//! As torch: `torch.nn.utils.clip_grad_norm_` (factor `min(1, max / (norm + 1e-6))`) followed by
//! `torch.optim.AdamW` (Loshchilov & Hutter 2019), decay on A and B alike.

use burn::tensor::Tensor;
use tune_kernels::adamw::{AdamWConfig, Moments, adamw, sum_of_squares};
use tune_kernels::backend::KernelBackend;

use crate::adapter::lora::{Gradients, LoraSet};

/// Guards the clipping factor against a zero norm, as torch does.
const CLIP_EPSILON: f64 = 1e-6;

/// The optimizer's state: first and second moments of every adapter matrix, and the steps done.
#[derive(Debug)]
pub struct Optimizer<B: KernelBackend<Frozen = B>> {
    config: AdamWConfig,
    moments: Vec<Moments<B>>,
    steps: u64,
}

impl<B: KernelBackend<Frozen = B>> Optimizer<B> {
    /// Zero moments for every matrix of `adapters`; betas 0.9 and 0.999, epsilon 1e-8.
    pub fn new(adapters: &LoraSet<B>, weight_decay: f64) -> Self {
        let moments = adapters
            .parameters()
            .map(|parameter| Moments { first: parameter.zeros_like(), second: parameter.zeros_like() })
            .collect();
        let config = AdamWConfig { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay };
        Self { config, moments, steps: 0 }
    }

    /// Takes up moments saved after `steps` steps, in the order of [`LoraSet::parameters`].
    pub fn restore(&mut self, moments: Vec<Moments<B>>, steps: u64) {
        debug_assert_eq!(moments.len(), self.moments.len());
        self.moments = moments;
        self.steps = steps;
    }

    /// The moments, in the order of [`LoraSet::parameters`].
    pub fn moments(&self) -> &[Moments<B>] {
        &self.moments
    }

    /// Updates every matrix of `adapters` once. `norm` is [`global_norm`] of `gradients`; `max_grad_norm` 0: no clipping.
    pub fn step(
        &mut self,
        adapters: &mut LoraSet<B>,
        gradients: Gradients<B>,
        norm: f64,
        learning_rate: f64,
        max_grad_norm: f64,
    ) {
        self.steps += 1;
        let factor = match max_grad_norm > 0.0 {
            true => (max_grad_norm / (norm + CLIP_EPSILON)).min(1.0),
            false => 1.0,
        };
        let moments = std::mem::take(&mut self.moments);
        let (config, steps) = (self.config, self.steps);
        self.moments = adapters.update(gradients.into_tensors().zip(moments), |parameter, (gradient, moments)| {
            let gradient: Tensor<B, 2> = if factor < 1.0 { gradient.mul_scalar(factor as f32) } else { gradient };
            adamw(parameter, gradient, moments, &config, learning_rate, steps)
        });
    }
}

/// √(Σ g²) over all adapter gradients.
pub fn global_norm<B: KernelBackend<Frozen = B>>(gradients: &Gradients<B>) -> f64 {
    gradients.tensors().map(sum_of_squares).sum::<f64>().sqrt()
}
