//! What the training loop works on, where it begins, and the gradient of one optimizer step. The loop itself is
//! `running`; the micro-batches of a step are summed in `lanes`.
//!
//! Knows nothing of recipes, files of examples or devices: it takes a decoder, adapters, an objective, a stream of
//! optimizer steps and a folder, and reports to an [`Observer`]. The stream may begin anywhere: what came before is in the
//! [`State`], and an interrupted run ends with the same numbers as one that was not.

use std::path::PathBuf;

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_ranks::tree::Tree;

use super::backward::{Gradients, Pass, forward_backward};
use super::budget::Clock;
use super::compare::compare;
use super::divergence::Snapshot;
use super::error::FitError;
use super::event::Observer;
use super::exchange::{Share, Wishes};
use super::expert_load::ExpertLoad;
use super::folder::RunFolder;
use super::lanes::Lanes;
use super::metrics::Metrics;
use super::optimizer::{Gradient, Optimizer};
use super::running::Running;
use super::schedule::Schedule;
use super::spec::Spec;
use super::state::{Ended, State};
use super::team::Team;
use crate::adapter::lora::{DropoutStep, LoraSet, StepAdapters};
use crate::data::batch::{Counts, StepBatch};
use crate::data::corpus::ValidationStream;
use crate::data::error::Error as DataError;
use crate::data::example::RowId;
use crate::model::Decoder;
use crate::objective::{Objective, Summed};

/// Answers sample prompts with the adapter as it is after a step.
pub type Sample<'a, B> = &'a dyn Fn(u64, &LoraSet<B>, &mut dyn Observer);

/// What the loop works on.
pub struct Fit<'a, B: KernelBackend> {
    /// The frozen base.
    pub decoder: &'a Decoder<B>,
    /// What is minimised.
    pub objective: &'a Objective,
    /// The adapter as the run began, where the objective compares with it; a set without adapters is the base.
    pub reference: Option<&'a StepAdapters<'a, B>>,
    /// The `[train]` table.
    pub spec: &'a Spec,
    /// Seed of the run; dropout masks are keyed by it.
    pub seed: u64,
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// Starts a stream of the held-out micro-batches, once per evaluation; `None` when no row is held out.
    pub held_out: Option<&'a dyn Fn() -> Result<ValidationStream, DataError>>,
    /// Held-out examples.
    pub held_out_examples: u64,
    /// The ranks that train together.
    pub team: &'a Team,
    /// How the micro-batches of a step are dealt out.
    pub lanes: Lanes,
    /// Where the run writes; `None` on all ranks but the first.
    pub folder: Option<&'a RunFolder>,
    /// Polled between micro-batches: whether the run should stop here, with a checkpoint.
    pub stop: &'a dyn Fn() -> bool,
    /// Polled after each step: whether its checkpoint was requested.
    pub save: &'a dyn Fn() -> bool,
    /// When `max_time` is spent.
    pub clock: Clock,
    /// Names a row for people.
    pub place: &'a dyn Fn(RowId) -> String,
    /// The device's name in messages.
    pub device: &'a str,
    /// How many of the top layers save what their backward pass needs.
    pub kept_layers: usize,
    /// Whether the inputs of the others wait in host memory.
    pub parks_inputs: bool,
    /// Answers the recipe's sample prompts every so many steps; a failure to answer is reported and ends nothing.
    pub sample: Option<(u64, Sample<'a, B>)>,
    /// The device has a queue of its own: each step is launched before the numbers of the one before are read. Never
    /// with several ranks.
    pub runs_ahead: bool,
}

/// Where a run begins.
pub struct Position<B: KernelBackend> {
    /// Its counters.
    pub state: State,
    /// The snapshot to roll back to that the checkpoint held.
    pub kept: Option<Snapshot<B>>,
    /// The checkpoint that all of it was read from.
    pub saved: Option<PathBuf>,
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Steps, tokens, losses and evaluations at its end.
    pub state: State,
    /// How it ended.
    pub ended: Ended,
}

impl<B: KernelBackend> Fit<'_, B> {
    /// Trains `adapters` from `position` to the end of `steps`, or until the run is asked to stop.
    ///
    /// # Errors
    /// [`FitError`]: unreadable rows, an unwritable folder, a failed device, or a loss that is not finite.
    pub fn run(
        &self,
        adapters: &mut LoraSet<B>,
        optimizer: &mut Optimizer<B>,
        position: Position<B>,
        steps: impl Iterator<Item = Result<StepBatch, DataError>>,
        observer: &mut dyn Observer,
    ) -> Result<Summary, FitError> {
        let metrics = self.folder.map(|folder| Metrics::open(folder, &position.state)).transpose()?;
        Running::new(self, adapters, optimizer, position, metrics, observer).run(steps)
    }

    /// The gradient of one optimizer step, and what the ranks ask of the run; no gradient when the run is asked to stop
    /// meanwhile.
    pub(super) fn gradient(
        &self,
        adapters: &LoraSet<B>,
        batch: &StepBatch,
    ) -> Result<(Wishes, Option<Gradient<B>>), FitError> {
        let (share, count) = (self.share(adapters, batch)?, batch.micro_batches.len());
        let (wishes, whole) = if self.team.is_alone() {
            (Wishes::default(), share.map(|share| share.in_order(self.lanes.order(0, count))))
        } else {
            let late = self.clock.is_spent(batch.step, true);
            let wishes = Wishes { stop: share.is_none() || (self.stop)(), save: (self.save)(), late };
            let nothing = || Share {
                losses: Vec::new(),
                values: vec![None; adapters.parameters().len()],
                load: ExpertLoad::default(),
            };
            self.exchange(adapters.parameters(), count, share.unwrap_or_else(nothing), wishes)?
        };
        let scale = 1.0 / self.objective.divisor(&batch.counts) as f64;
        let gradient = |Share { losses, values, load }: Share<B>| {
            Gradient::new(losses, values, scale, self.decoder.device()).with_load(load)
        };
        Ok((wishes, whole.map(gradient)))
    }

    /// What this rank computes of a step; `None` when the run is asked to stop meanwhile.
    fn share(&self, adapters: &LoraSet<B>, batch: &StepBatch) -> Result<Option<Share<B>>, FitError> {
        let (mut losses, mut load, mut sums) = (Vec::new(), ExpertLoad::default(), Tree::default());
        let adapters = adapters.until_update();
        for lane in self.lanes.of(self.team.rank(), batch.micro_batches.len()) {
            let Some(sum) = self.lane(&adapters, batch, lane, &mut losses, &mut load)? else {
                return Ok(None);
            };
            sums.push(sum, add);
        }
        let nothing = || vec![None; adapters.set().parameters().len()];
        Ok(Some(Share { losses, values: sums.sum(add).unwrap_or_else(nothing), load }))
    }

    /// What a step has for a lane.
    pub(super) fn counts(&self, batch: &StepBatch, lane: usize) -> Counts {
        let of_lane = self.lanes.micro_batches(lane, batch.micro_batches.len());
        of_lane.map(|index| batch.micro_batches[index].counts()).sum()
    }

    /// The gradient of a lane's sum, one entry for each parameter; appends the losses of its micro-batches, and adds to the
    /// load of experts. `None` when the run is asked to stop meanwhile.
    pub(super) fn lane(
        &self,
        adapters: &StepAdapters<'_, B>,
        batch: &StepBatch,
        lane: usize,
        losses: &mut Vec<Summed<B>>,
        load: &mut ExpertLoad,
    ) -> Result<Option<Vec<Option<Tensor<B, 2>>>>, FitError> {
        let (decoder, objective) = (self.decoder, self.objective);
        let mut gradients = Gradients::new(decoder.layers().len());
        for index in self.lanes.micro_batches(lane, batch.micro_batches.len()) {
            if !losses.is_empty() && (self.stop)() {
                return Ok(None);
            }
            let dropout = DropoutStep { seed: self.seed, step: batch.step, micro_batch: index as u32 };
            let balance = self.spec.router_aux_loss_coef;
            let pass = Pass { dropout, keep: self.kept_layers, balance, parks: self.parks_inputs };
            let micro_batch = &batch.micro_batches[index];
            let comparison = compare(decoder, adapters, self.reference, objective, micro_batch)?;
            let sums = &mut gradients;
            losses.push(forward_backward(
                decoder,
                adapters,
                objective,
                &comparison,
                micro_batch,
                pass,
                sums,
            )?);
        }
        load.add(&gradients.expert_load());
        Ok(Some(gradients.by_parameter(adapters.set())))
    }
}

/// The sum of two lanes, one entry for each parameter.
pub(super) fn add<B: KernelBackend>(
    left: Vec<Option<Tensor<B, 2>>>,
    right: Vec<Option<Tensor<B, 2>>>,
) -> Vec<Option<Tensor<B, 2>>> {
    let pair = |pair| match pair {
        (Some(left), Some(right)) => Some(left + right),
        (one, other) => one.or(other),
    };
    left.into_iter().zip(right).map(pair).collect()
}
