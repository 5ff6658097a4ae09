//! AdamW over all adapters, after clipping by the norm of all their gradients together.
//!
//! As torch: `torch.nn.utils.clip_grad_norm_` (factor `min(1, max / (norm + 1e-6))`) followed by
//! `torch.optim.AdamW` (Loshchilov & Hutter 2019), decay on A and B alike.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::adamw::{AdamWConfig, Moments, Update, adamw, sum_of_squares};

use crate::adapter;
use crate::adapter::lora::LoraSet;

/// Guards the clipping factor against a zero norm, as torch does.
const CLIP_EPSILON: f64 = 1e-6;

/// The optimizer's state: first and second moments of every adapter matrix, and the steps done.
#[derive(Debug)]
pub struct Optimizer<B: KernelBackend> {
    config: AdamWConfig,
    moments: Vec<Moments<B>>,
    steps: u64,
}

impl<B: KernelBackend> Optimizer<B> {
    /// Zero moments for every matrix of `adapters`; betas 0.9 and 0.999, epsilon 1e-8.
    pub fn new(adapters: &LoraSet<B>, weight_decay: f64) -> Self {
        let zero =
            |tensor: &Tensor<B, 2>| Moments { first: tensor.zeros_like(), second: tensor.zeros_like() };
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

    /// Updates every matrix of `adapters` once, in one pass. `max_grad_norm` 0: no clipping.
    ///
    /// # Errors
    /// [`adapter::Error`] when gradients and adapters do not belong together.
    pub fn step(
        &mut self,
        adapters: &mut LoraSet<B>,
        gradient: Gradient<B>,
        learning_rate: f64,
        max_grad_norm: f64,
    ) -> Result<(), adapter::Error> {
        self.steps += 1;
        let Gradient { values, scale, norm } = gradient;
        let clipping =
            if max_grad_norm > 0.0 { (max_grad_norm / (norm + CLIP_EPSILON)).min(1.0) } else { 1.0 };
        let moments = std::mem::take(&mut self.moments);
        adapters.update(|parameters| {
            let parts = parameters.into_iter().zip(values).zip(moments);
            let updates =
                parts.map(|((parameter, gradient), moments)| Update { parameter, gradient, moments });
            let factor = (scale * clipping) as f32;
            let updated = adamw(updates.collect(), factor, &self.config, learning_rate, self.steps);
            let (parameters, moments) = updated.into_iter().unzip();
            self.moments = moments;
            parameters
        })
    }
}

/// The gradient of an optimizer step: one over the tokens, times that of the sum over them.
#[derive(Debug)]
pub struct Gradient<B: KernelBackend> {
    /// Of Σ nll, one entry for each parameter; `None` counts as zero.
    pub values: Vec<Option<Tensor<B, 2>>>,
    /// One over the supervised tokens of the step.
    pub scale: f64,
    /// √ of the sum of squares of `scale · values`.
    pub norm: f64,
}

/// √(Σ g²) over all adapter gradients.
pub fn global_norm<B: KernelBackend>(gradients: &[Option<Tensor<B, 2>>]) -> f64 {
    let gradients: Vec<_> = gradients.iter().flatten().collect();
    sum_of_squares(&gradients).sqrt()
}
