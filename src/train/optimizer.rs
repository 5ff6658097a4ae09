//! AdamW over all adapters, after clipping by the norm of all their gradients together.
//!
//! As torch: `torch.nn.utils.clip_grad_norm_` (factor `min(1, max / (norm + 1e-6))`) followed by
//! `torch.optim.AdamW` (Loshchilov & Hutter 2019), decay on A and B alike. With LoRA+ B (and under DoRA the magnitudes)
//! has a learning rate of its own, as in PEFT's `create_loraplus_optimizer`; clipping and schedule see both alike.
//!
//! The adapter of an expert that no token of a step reached has no gradient, and is not stepped: no decay, its moments and
//! its count of updates stay.

use std::collections::BTreeMap;

use burn_tensor::Tensor;
use tune_kernels::adamw::{AdamWConfig, Guard, Moments, Update, adamw, norm};
use tune_kernels::{KernelBackend, Reading};

use super::divergence::Quantity;
use super::expert_load::ExpertLoad;
use crate::adapter;
use crate::adapter::lora::LoraSet;
use crate::adapter::parameter::{Parameter, Part};
use crate::objective::{Summed, statistics};

/// The optimizer's state: first and second moments of every adapter matrix.
#[derive(Debug)]
pub struct Optimizer<B: KernelBackend> {
    config: AdamWConfig,
    moments: Vec<Moments<B>>,
    /// Parameters by learning rate, the lowest rate first.
    groups: Vec<RateGroup>,
    /// For each parameter, the number of its target among those that belong to experts.
    experts: Vec<Option<usize>>,
}

/// Parameters that share a learning rate.
#[derive(Clone, Debug)]
struct RateGroup {
    /// Their rate over that of A.
    factor: f64,
    /// Their places in the order of [`LoraSet::parameters`].
    parameters: Vec<usize>,
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
            Part::A | Part::Saved => 1.0,
            Part::B | Part::Magnitude => learning_rate_ratio,
        };
        let factors: Vec<f64> = adapters.parameters().iter().map(factor).collect();
        let mut distinct = factors.clone();
        distinct.sort_by(f64::total_cmp);
        distinct.dedup();
        let group = |factor: f64| {
            let parameters = (0..factors.len()).filter(|index| factors[*index] == factor).collect();
            RateGroup { factor, parameters }
        };
        let groups = distinct.into_iter().map(group).collect();
        Self { config, moments, groups, experts: experts(adapters) }
    }

    /// The targets of experts that a gradient reaches, by their numbers among those of experts.
    pub fn reached(&self, gradient: &Gradient<B>) -> Vec<usize> {
        let parameters = self.experts.iter().zip(&gradient.values);
        let mut reached: Vec<usize> =
            parameters.filter_map(|(expert, value)| expert.filter(|_| value.is_some())).collect();
        reached.dedup();
        reached
    }

    /// Replaces the moments by saved ones, in the order of [`LoraSet::parameters`].
    pub fn restore(&mut self, moments: Vec<Moments<B>>) {
        self.moments = moments;
    }

    /// The moments, in the order of [`LoraSet::parameters`].
    pub fn moments(&self) -> &[Moments<B>] {
        &self.moments
    }

    /// Updates every matrix of `adapters` once, in one pass for each learning rate; nothing changes when loss or gradient
    /// is not finite, which the device itself checks. `update` counts the updates made, this one included, and
    /// `expert_updates` those made of each target of an expert before; `learning_rate` is A's; `max_grad_norm` 0: no
    /// clipping.
    ///
    /// # Errors
    /// [`adapter::Error`] when gradients and adapters do not fit together.
    pub fn step(
        &mut self,
        adapters: &mut LoraSet<B>,
        gradient: Gradient<B>,
        update: u64,
        expert_updates: &[u64],
        learning_rate: f64,
        max_grad_norm: f64,
    ) -> Result<(), adapter::Error> {
        let Gradient { values, numbers, scale, .. } = gradient;
        let guard = Guard { numbers, scale, max_norm: max_grad_norm };
        let moments = std::mem::take(&mut self.moments);
        adapters.update(|parameters| {
            let parts = parameters.into_iter().zip(values).zip(moments);
            let mut updates: Vec<Option<Update<B>>> = parts
                .map(|((parameter, gradient), moments)| Some(Update { parameter, gradient, moments }))
                .collect();
            let mut updated = Vec::with_capacity(updates.len());
            for RateGroup { factor, parameters } in &self.groups {
                // By the number that this update has for them.
                let mut by_count: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
                for index in parameters {
                    let is_reached = updates[*index].as_ref().is_some_and(|update| update.gradient.is_some());
                    match self.experts[*index] {
                        None => by_count.entry(update).or_default().push(*index),
                        Some(expert) if is_reached => {
                            let made = expert_updates.get(expert).copied().unwrap_or(0);
                            by_count.entry(made + 1).or_default().push(*index);
                        }
                        Some(_) => {
                            let unreached = updates[*index].take();
                            updated.extend(unreached.map(|one| (*index, (one.parameter, one.moments))));
                        }
                    }
                }
                for (count, parameters) in by_count {
                    let group = parameters.iter().filter_map(|index| updates[*index].take()).collect();
                    let group = adamw(group, &guard, &self.config, factor * learning_rate, count);
                    updated.extend(parameters.into_iter().zip(group));
                }
            }
            updated.sort_by_key(|(index, _)| *index);
            let (parameters, moments) = updated.into_iter().map(|(_, updated)| updated).unzip();
            self.moments = moments;
            parameters
        })
    }
}

/// For each parameter, the number of its target among those that belong to experts.
fn experts<B: KernelBackend>(adapters: &LoraSet<B>) -> Vec<Option<usize>> {
    let mut numbers = 0..;
    let mut experts = Vec::with_capacity(adapters.parameters().len());
    for target in adapters.targets() {
        let number = if target.module.role.is_routed() { numbers.next() } else { None };
        experts.extend(target.parts().map(|_| number));
    }
    experts.resize(adapters.parameters().len(), None);
    experts
}

/// The gradient of an optimizer step, and whether it may be used: all of it on the device.
#[derive(Debug)]
pub struct Gradient<B: KernelBackend> {
    values: Vec<Option<Tensor<B, 2>>>,
    numbers: Tensor<B, 1>,
    /// The objective's statistics, summed over micro-batches.
    statistics: Option<Tensor<B, 1>>,
    scale: f64,
    /// How many tokens were sent to each expert.
    load: ExpertLoad,
}

impl<B: KernelBackend> Gradient<B> {
    /// Of a step with `losses`, one for each micro-batch, and the gradients of their sum, one for each parameter;
    /// `None` counts as zero. `scale` is one over the objective's count.
    pub fn new(
        losses: Vec<Summed<B>>,
        values: Vec<Option<Tensor<B, 2>>>,
        scale: f64,
        device: &B::Device,
    ) -> Self {
        let norm = norm(&values.iter().flatten().collect::<Vec<_>>(), device);
        let (losses, statistics): (Vec<_>, Vec<_>) =
            losses.into_iter().map(|loss| (loss.value, loss.statistics)).unzip();
        let numbers = Tensor::cat(losses.into_iter().chain([norm]).collect(), 0);
        let statistics = statistics.into_iter().flatten().reduce(|sum, next| sum + next);
        Self { values, numbers, statistics, scale, load: ExpertLoad::default() }
    }

    /// The same, with the tokens that experts were sent for it.
    #[must_use]
    pub fn with_load(self, load: ExpertLoad) -> Self {
        Self { load, ..self }
    }

    /// The tokens that experts were sent for it.
    pub fn load(&self) -> &ExpertLoad {
        &self.load
    }

    /// Starts to read its losses and norm, without waiting.
    pub fn read_later(&self) -> PendingNumbers {
        let numbers = match self.statistics.clone() {
            Some(statistics) => Tensor::cat(vec![statistics, self.numbers.clone()], 0),
            None => self.numbers.clone(),
        };
        let has_statistics = self.statistics.is_some();
        PendingNumbers { reading: B::read_later(numbers), has_statistics, scale: self.scale }
    }
}

/// Losses and norm of a step, on their way from the device.
#[derive(Debug)]
pub struct PendingNumbers {
    reading: Reading,
    /// The first numbers are statistics.
    has_statistics: bool,
    scale: f64,
}

/// Losses and norm of a step. The device's update used the same numbers to decide whether it changes anything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepNumbers {
    /// All are finite.
    Finite {
        /// The summed loss.
        loss: f64,
        /// Global gradient norm of the mean, before clipping.
        norm: f64,
        /// The objective's statistics.
        statistics: Option<[f32; statistics::LENGTH]>,
    },
    /// One is not, and the update changed nothing.
    NotFinite(Quantity, f64),
}

impl PendingNumbers {
    /// Waits for them.
    ///
    /// # Errors
    /// The device's own error message.
    pub fn wait(self) -> Result<StepNumbers, String> {
        let numbers = self.reading.wait()?;
        let (statistics, numbers) = match numbers.split_first_chunk().filter(|_| self.has_statistics) {
            Some((statistics, numbers)) => (Some(*statistics), numbers),
            None => (None, numbers.as_slice()),
        };
        let Some((norm, losses)) = numbers.split_last() else { return Err("no numbers to read".into()) };
        let mut sum = 0.0;
        for loss in losses {
            sum += f64::from(*loss);
            if !sum.is_finite() {
                return Ok(StepNumbers::NotFinite(Quantity::Loss, self.scale * sum));
            }
        }
        let norm = self.scale * f64::from(*norm);
        Ok(match norm.is_finite() {
            true => StepNumbers::Finite { loss: sum, norm, statistics },
            false => StepNumbers::NotFinite(Quantity::GradientNorm, norm),
        })
    }
}
