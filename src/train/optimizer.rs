//! AdamW over all adapters, after clipping by the norm of all their gradients together.
//!
//! As torch: `torch.nn.utils.clip_grad_norm_` (factor `min(1, max / (norm + 1e-6))`) followed by
//! `torch.optim.AdamW` (Loshchilov & Hutter 2019), decay on A and B alike.

use tune_kernels::KernelBackend;
use tune_kernels::adamw::{AdamWConfig, Moments, adamw, sum_of_squares};

use super::backward::Gradients;
use crate::adapter;
use crate::adapter::lora::LoraSet;

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
        let zero = |tensor: &burn::tensor::Tensor<B, 2>| Moments {
            first: tensor.zeros_like(),
            second: tensor.zeros_like(),
        };
        let moments = adapters.tensors().iter().map(zero).collect();
        let config = AdamWConfig { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay };
        Self { config, moments, steps: 0 }
    }

    /// Takes up moments saved after `steps` steps, in the order of [`LoraSet::parameters`].
    pub fn restore(&mut self, moments: Vec<Moments<B>>, steps: u64) {
        self.moments = moments;
        self.steps = steps;
    }

    /// The moments, in the order of [`LoraSet::parameters`].
    pub fn moments(&self) -> &[Moments<B>] {
        &self.moments
    }

    /// Updates every matrix of `adapters` once. `norm` is [`global_norm`] of `gradients`; `max_grad_norm` 0: no clipping.
    ///
    /// # Errors
    /// [`adapter::Error`] when gradients and adapters do not belong together.
    pub fn step(
        &mut self,
        adapters: &mut LoraSet<B>,
        gradients: Gradients<B>,
        norm: f64,
        learning_rate: f64,
        max_grad_norm: f64,
    ) -> Result<(), adapter::Error> {
        self.steps += 1;
        let factor = if max_grad_norm > 0.0 { (max_grad_norm / (norm + CLIP_EPSILON)).min(1.0) } else { 1.0 };
        let mut updated = Vec::with_capacity(adapters.tensors().len());
        let moments = std::mem::take(&mut self.moments);
        for ((parameter, gradient), moments) in
            adapters.tensors().iter().zip(gradients.into_tensors()).zip(moments)
        {
            let gradient = gradient.unwrap_or_else(|| parameter.zeros_like());
            let gradient = if factor < 1.0 { gradient.mul_scalar(factor as f32) } else { gradient };
            let (parameter, moments) =
                adamw(parameter.clone(), gradient, moments, &self.config, learning_rate, self.steps);
            updated.push(parameter);
            self.moments.push(moments);
        }
        adapters.replace(updated)
    }
}

/// √(Σ g²) over all adapter gradients.
pub fn global_norm<B: KernelBackend>(gradients: &Gradients<B>) -> f64 {
    gradients.iter().map(sum_of_squares).sum::<f64>().sqrt()
}
