//! AdamW over all adapters, after clipping by the norm of all their gradients together.
//!
//! As torch: `torch.nn.utils.clip_grad_norm_` (factor `min(1, max / (norm + 1e-6))`) followed by
//! `torch.optim.AdamW` (Loshchilov & Hutter 2019), decay on A and B alike. With LoRA+ B (and under DoRA the magnitudes)
//! has a learning rate of its own, as in PEFT's `create_loraplus_optimizer`; clipping and schedule see both alike.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::adamw::{AdamWConfig, Moments, Update, adamw, sum_of_squares};

use crate::adapter;
use crate::adapter::lora::{LoraSet, Parameter};
use crate::adapter::peft::keys::Part;

/// Guards the clipping factor against a zero norm, as torch does.
const CLIP_EPSILON: f64 = 1e-6;

/// The optimizer's state: first and second moments of every adapter matrix, and the steps done.
#[derive(Debug)]
pub struct Optimizer<B: KernelBackend> {
    config: AdamWConfig,
    moments: Vec<Moments<B>>,
    /// What each parameter's learning rate is multiplied by.
    rate_factors: Vec<f64>,
    steps: u64,
}

impl<B: KernelBackend> Optimizer<B> {
    /// Zero moments for every matrix of `adapters`; betas 0.9 and 0.999, epsilon 1e-8. `learning_rate_ratio` is B's rate
    /// over A's.
    pub fn new(adapters: &LoraSet<B>, weight_decay: f64, learning_rate_ratio: f64) -> Self {
        let zero =
            |tensor: &Tensor<B, 2>| Moments { first: tensor.zeros_like(), second: tensor.zeros_like() };
        let moments = adapters.tensors().iter().map(zero).collect();
        let config = AdamWConfig { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay };
        let factor = |parameter: &Parameter| match parameter.part {
            Part::A | Part::Whole => 1.0,
            Part::B | Part::Magnitude => learning_rate_ratio,
        };
        let rate_factors = adapters.parameters().iter().map(factor).collect();
        Self { config, moments, rate_factors, steps: 0 }
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

    /// Updates every matrix of `adapters` once, in one pass for each learning rate. `learning_rate` is A's;
    /// `max_grad_norm` 0: no clipping.
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
            let mut rates: Vec<f64> = self.rate_factors.clone();
            rates.sort_by(f64::total_cmp);
            rates.dedup();
            let mut groups: Vec<(Vec<usize>, Vec<Update<B>>)> = vec![Default::default(); rates.len()];
            for (index, update) in updates.enumerate() {
                let rate = rates.partition_point(|rate| *rate < self.rate_factors[index]);
                groups[rate].0.push(index);
                groups[rate].1.push(update);
            }
            let gradient_factor = (scale * clipping) as f32;
            let mut updated = Vec::with_capacity(self.rate_factors.len());
            for (rate, (indices, updates)) in rates.into_iter().zip(groups) {
                let rate = rate * learning_rate;
                let group = adamw(updates, gradient_factor, &self.config, rate, self.steps);
                updated.extend(indices.into_iter().zip(group));
            }
            updated.sort_by_key(|(index, _)| *index);
            let (parameters, moments) = updated.into_iter().map(|(_, updated)| updated).unzip();
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
