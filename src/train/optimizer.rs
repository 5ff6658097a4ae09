//! AdamW over all adapters, after clipping by the norm of all their gradients together.
//!
//! As torch: `torch.nn.utils.clip_grad_norm_` (factor `min(1, max / (norm + 1e-6))`) followed by
//! `torch.optim.AdamW` (Loshchilov & Hutter 2019), decay on A and B alike. With LoRA+ B (and under DoRA the magnitudes)
//! has a learning rate of its own, as in PEFT's `create_loraplus_optimizer`; clipping and schedule see both alike.

use burn::tensor::Tensor;
use tune_kernels::adamw::{AdamWConfig, Guard, Moments, Update, adamw, norm};
use tune_kernels::{KernelBackend, Reading};

use super::divergence::Quantity;
use crate::adapter;
use crate::adapter::lora::{LoraSet, Parameter};
use crate::adapter::peft::keys::Part;

/// The optimizer's state: first and second moments of every adapter matrix.
#[derive(Debug)]
pub struct Optimizer<B: KernelBackend> {
    config: AdamWConfig,
    moments: Vec<Moments<B>>,
    /// What each parameter's learning rate is multiplied by.
    rate_factors: Vec<f64>,
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
        Self { config, moments, rate_factors }
    }

    /// Takes up saved moments, in the order of [`LoraSet::parameters`].
    pub fn restore(&mut self, moments: Vec<Moments<B>>) {
        self.moments = moments;
    }

    /// The moments, in the order of [`LoraSet::parameters`].
    pub fn moments(&self) -> &[Moments<B>] {
        &self.moments
    }

    /// Updates every matrix of `adapters` once, in one pass for each learning rate; nothing changes when loss or gradient
    /// is not finite, which is found out on the device. `update` counts the updates made, this one included;
    /// `learning_rate` is A's; `max_grad_norm` 0: no clipping.
    ///
    /// # Errors
    /// [`adapter::Error`] when gradients and adapters do not belong together.
    pub fn step(
        &mut self,
        adapters: &mut LoraSet<B>,
        gradient: Gradient<B>,
        update: u64,
        learning_rate: f64,
        max_grad_norm: f64,
    ) -> Result<(), adapter::Error> {
        let Gradient { values, numbers, scale } = gradient;
        let guard = Guard { numbers, scale, max_norm: max_grad_norm };
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
            let mut updated = Vec::with_capacity(self.rate_factors.len());
            for (rate, (indices, updates)) in rates.into_iter().zip(groups) {
                let rate = rate * learning_rate;
                let group = adamw(updates, &guard, &self.config, rate, update);
                updated.extend(indices.into_iter().zip(group));
            }
            updated.sort_by_key(|(index, _)| *index);
            let (parameters, moments) = updated.into_iter().map(|(_, updated)| updated).unzip();
            self.moments = moments;
            parameters
        })
    }
}

/// The gradient of an optimizer step, and whether it may be used: all of it on the device.
#[derive(Debug)]
pub struct Gradient<B: KernelBackend> {
    values: Vec<Option<Tensor<B, 2>>>,
    numbers: Tensor<B, 1>,
    scale: f64,
}

impl<B: KernelBackend> Gradient<B> {
    /// Of a step with `losses` `[1]`, one for each micro-batch, and the gradients of their sum, one for each parameter;
    /// `None` counts as zero. `scale` is one over the supervised tokens.
    pub fn new(
        losses: Vec<Tensor<B, 1>>,
        values: Vec<Option<Tensor<B, 2>>>,
        scale: f64,
        device: &B::Device,
    ) -> Self {
        let norm = norm(&values.iter().flatten().collect::<Vec<_>>(), device);
        let numbers = Tensor::cat(losses.into_iter().chain([norm]).collect(), 0);
        Self { values, numbers, scale }
    }

    /// Has the device hand out its numbers once they are there.
    pub fn read_later(&self) -> Numbers {
        Numbers { reading: B::read_later(self.numbers.clone()), scale: self.scale }
    }
}

/// Losses and norm of a step, on their way from the device.
#[derive(Debug)]
pub struct Numbers {
    reading: Reading,
    scale: f64,
}

/// What came of a step, as the device's own update judged it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Found {
    /// All is finite.
    Finite {
        /// Σ nll over the supervised tokens.
        nll: f64,
        /// Global gradient norm of the mean, before clipping.
        norm: f64,
    },
    /// Something is not, and the update changed nothing.
    Diverged(Quantity, f64),
}

impl Numbers {
    /// Waits for them.
    ///
    /// # Errors
    /// What went wrong on the device, in its own words.
    pub fn wait(self) -> Result<Found, String> {
        let numbers = self.reading.wait()?;
        let Some((norm, losses)) = numbers.split_last() else { return Err("it gave no numbers".into()) };
        let mut nll = 0.0;
        for loss in losses {
            nll += f64::from(*loss);
            if !nll.is_finite() {
                return Ok(Found::Diverged(Quantity::Loss, self.scale * nll));
            }
        }
        let norm = self.scale * f64::from(*norm);
        Ok(match norm.is_finite() {
            true => Found::Finite { nll, norm },
            false => Found::Diverged(Quantity::GradientNorm, norm),
        })
    }
}
