//! The training loop: accumulate, clip, update, log, evaluate, save.
//!
//! A device with a queue of its own runs ahead: a step's update is launched before its loss is known, guarded on the
//! device ([`tune_kernels::adamw::Guard`]), and its numbers are read once the next step is launched. Only read numbers
//! count: [`State`] stands after the last step whose numbers were read, and evaluations, checkpoints and the end of the
//! run wait for them.

mod local;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest, Sha256};
use tune_kernels::KernelBackend;
use tune_kernels::memory::DeviceMemory;

use super::budget::Spent;
use super::divergence::{DivergenceReport, Fault, OnDivergence, Quantity, Snapshot, named_rows};
use super::error::FitError;
use super::event::{Event, Observer, StepReport};
use super::exchange::Wishes;
use super::expert_load::ExpertLoad;
use super::fit::{Fit, Position, Summary};
use super::metrics::Metrics;
use super::optimizer::{Gradient, Optimizer, PendingNumbers, StepNumbers};
use super::process;
use super::state::{Ended, Kept, State, StepResult};
use super::team::{TeamError, to_bytes};
use crate::adapter::lora::LoraSet;
use crate::data::batch::StepBatch;
use crate::data::error::Error as DataError;
use crate::objective::statistics::Statistics;

/// A run under way.
pub(super) struct Running<'r, 'f, B: KernelBackend> {
    fit: &'r Fit<'f, B>,
    adapters: &'r mut LoraSet<B>,
    optimizer: &'r mut Optimizer<B>,
    state: State,
    /// The snapshot to roll back to.
    kept: Option<Snapshot<B>>,
    /// `None` on all ranks but the first.
    metrics: Option<Metrics>,
    observer: &'r mut dyn Observer,
    /// What the ranks asked of the run while the last gradient was computed.
    wishes: Wishes,
    /// The step whose numbers are still to be read.
    launched: Option<Launched>,
    pace: Pace,
    /// The moment up to which `pace` counts.
    since: Instant,
    /// The last step that the observer was notified of.
    reported_step: u64,
    /// The step whose checkpoint is on disk.
    saved_step: Option<u64>,
    /// The largest memory use of the device that was sampled.
    device_memory: Option<DeviceMemory>,
}

/// A step whose update is launched and whose numbers are not read yet.
struct Launched {
    batch: StepBatch,
    learning_rate: f64,
    numbers: PendingNumbers,
    /// The targets of experts that it reached.
    experts: Vec<usize>,
    /// How many tokens were sent to each expert.
    load: ExpertLoad,
}

/// The result of reading a launched step's numbers.
#[derive(Clone, Copy, PartialEq)]
enum ReadStep {
    /// The step was made, or none was launched.
    Accepted,
    /// Diverged but tolerated by `on_divergence`; the step launched ahead must be recomputed.
    Diverged,
}

/// Training time and tokens since the last logged line, of this process alone.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    time: Duration,
    tokens: u64,
}

impl<'r, 'f, B: KernelBackend> Running<'r, 'f, B> {
    pub(super) fn new(
        fit: &'r Fit<'f, B>,
        adapters: &'r mut LoraSet<B>,
        optimizer: &'r mut Optimizer<B>,
        Position { state, kept, saved }: Position<B>,
        metrics: Option<Metrics>,
        observer: &'r mut dyn Observer,
    ) -> Self {
        Self {
            fit,
            adapters,
            optimizer,
            wishes: Wishes::default(),
            launched: None,
            since: Instant::now(),
            reported_step: state.step,
            saved_step: (saved.is_some() && saved == fit.folder.map(|folder| folder.checkpoint(state.step)))
                .then_some(state.step),
            state,
            kept,
            metrics,
            observer,
            pace: Pace::default(),
            device_memory: None,
        }
    }

    /// Trains to the end of `steps`, or until the run is asked to stop.
    pub(super) fn run(
        mut self,
        steps: impl Iterator<Item = Result<StepBatch, DataError>>,
    ) -> Result<Summary, FitError> {
        let ended = match self.fit.spec.local_steps {
            None => self.train(steps),
            Some(every) => self.train_locally(steps, every),
        };
        match ended {
            Ok(ended) => Ok(Summary { state: self.state, ended }),
            Err(error) => Err(self.save_before_failing(error)),
        }
    }

    fn train(
        &mut self,
        mut steps: impl Iterator<Item = Result<StepBatch, DataError>>,
    ) -> Result<Ended, FitError> {
        if matches!(self.fit.spec.on_divergence, OnDivergence::Rollback { .. }) && self.kept.is_none() {
            self.snapshot();
        }
        let mut ending = self.ending(false);
        if self.on_boundary(ending.is_some())?.is_break() {
            return self.stop();
        }
        loop {
            if let Some(ended) = ending {
                return Ok(ended);
            }
            if self.is_stopped() {
                return self.stop();
            }
            let next = match steps.next() {
                None => Ok(None),
                Some(Ok(batch)) => self.gradient(&batch).map(|gradient| Some((batch, gradient))),
                Some(Err(error)) => Err(error.into()),
            };
            // Read the step before while the device computes this one; its errors come first.
            let read = self.read_step()?;
            self.log_if_due(false)?;
            let Some((batch, mut gradient)) = next? else {
                ending = Some(Ended::Done);
                if self.on_boundary(true)?.is_break() {
                    return self.stop();
                }
                continue;
            };
            if read == ReadStep::Diverged {
                gradient = self.gradient(&batch)?;
            }
            let Some(gradient) = gradient.filter(|_| !self.is_stopped()) else { return self.stop() };
            let step = batch.step;
            self.update(batch, gradient)?;
            ending = self.ending(true);
            let is_requested = self.is_save_requested();
            if !self.fit.runs_ahead || ending.is_some() || is_requested || self.is_boundary(step) {
                self.read_step()?;
                if self.on_boundary(ending.is_some())?.is_break() {
                    return self.stop();
                }
                if is_requested && self.state.step > 0 {
                    self.save()?;
                }
            }
        }
    }

    /// Why the run ends after the last step that was launched, if it does. Time counts only once a step was made, so that
    /// a run that is resumed again and again makes progress.
    fn ending(&self, has_stepped: bool) -> Option<Ended> {
        let (step, tokens) = match &self.launched {
            Some(Launched { batch, .. }) => (batch.step, self.state.tokens + batch.tokens() as u64),
            None => (self.state.step, self.state.tokens),
        };
        let is_late = || match self.fit.team.is_alone() {
            true => self.fit.clock.is_spent(step, has_stepped),
            false => self.wishes.late && has_stepped,
        };
        let ended = State::ended_at(step, self.state.total_steps, tokens, &self.fit.spec.budget);
        ended.or_else(|| is_late().then_some(Ended::Budget(Spent::Time)))
    }

    /// Whether this process is asked to stop. Several ranks stop together, when they exchange their gradients.
    fn is_stopped(&self) -> bool {
        self.fit.team.is_alone() && (self.fit.stop)()
    }

    /// Whether a checkpoint of the step that was just made is asked for.
    fn is_save_requested(&self) -> bool {
        match self.fit.team.is_alone() {
            true => (self.fit.save)(),
            false => self.wishes.save,
        }
    }

    /// Whether an evaluation or a checkpoint that needs the numbers of `step` follows it.
    fn is_boundary(&self, step: u64) -> bool {
        let due = |every: u64| step.is_multiple_of(every.max(1));
        let is_sampled = self.fit.sample.is_some_and(|(every, _)| due(every));
        is_sampled
            || due(self.fit.spec.save_steps)
            || (self.fit.held_out.is_some() && due(self.fit.spec.eval_steps))
    }

    /// Launches forward and backward of a step; `None` when the run is asked to stop meanwhile.
    fn gradient(&mut self, batch: &StepBatch) -> Result<Option<Gradient<B>>, FitError> {
        if self.launched.is_none() {
            self.since = Instant::now();
        }
        let (wishes, gradient) = self.fit.gradient(self.adapters, batch)?;
        self.wishes = wishes;
        self.sample_device_memory();
        Ok(gradient)
    }

    /// Launches the update of a step.
    fn update(&mut self, batch: StepBatch, gradient: Gradient<B>) -> Result<(), FitError> {
        let learning_rate = self.fit.schedule.learning_rate(batch.step);
        let numbers = gradient.read_later();
        let (update, max_grad_norm) = (self.state.updates + 1, self.fit.spec.max_grad_norm);
        let (experts, load) = (self.optimizer.reached(&gradient), gradient.load().clone());
        let before = &self.state.expert_updates;
        self.optimizer.step(self.adapters, gradient, update, before, learning_rate, max_grad_norm)?;
        self.launched = Some(Launched { batch, learning_rate, numbers, experts, load });
        Ok(())
    }

    /// Reads the numbers of the launched step, and counts it.
    fn read_step(&mut self) -> Result<ReadStep, FitError> {
        let Some(Launched { batch, learning_rate, numbers, experts, load }) = self.launched.take() else {
            return Ok(ReadStep::Accepted);
        };
        let numbers = numbers.wait().map_err(|message| FitError::device(self.fit.device, message))?;
        let now = Instant::now();
        self.pace.time += now.duration_since(std::mem::replace(&mut self.since, now));
        self.pace.tokens += batch.tokens() as u64;
        match numbers {
            StepNumbers::NotFinite(what, value) => {
                let rows = named_rows(batch.rows(), self.fit.place);
                self.tolerate(&batch, Fault { step: batch.step, what, value, rows })?;
                Ok(ReadStep::Diverged)
            }
            StepNumbers::Finite { loss, norm, statistics } => {
                let count = self.fit.objective.divisor(&batch.counts);
                let statistics = statistics.map(|sums| Statistics::of(sums, &batch.counts));
                let result = StepResult { loss, count, grad_norm: norm, learning_rate, statistics };
                self.state.advance(&batch, result);
                self.state.advance_experts(&experts);
                self.state.add_load(&load);
                if matches!(self.fit.spec.on_divergence, OnDivergence::Skip { .. }) {
                    self.state.divergences = 0;
                }
                if self.fit.spec.on_divergence.keeps(self.state.step) {
                    self.state.divergences = 0;
                    self.snapshot();
                }
                Ok(ReadStep::Accepted)
            }
        }
    }

    /// Devices do not record their peak.
    fn sample_device_memory(&mut self) {
        if let Some(now) = B::device_memory(self.fit.decoder.device()) {
            self.device_memory = Some(self.device_memory.unwrap_or_default().max(now));
        }
    }

    /// Makes the present adapter and optimizer what a rollback returns to.
    fn snapshot(&mut self) {
        let State { step, updates, .. } = self.state;
        self.kept = Some(Snapshot::of(self.adapters, self.optimizer, step, updates));
        self.state.kept = Some(Kept { step, updates });
        self.state.kept_expert_updates.clone_from(&self.state.expert_updates);
    }

    /// Goes on after a diverged step, as long as the recipe's patience lasts.
    fn tolerate(&mut self, batch: &StepBatch, fault: Fault) -> Result<(), FitError> {
        if self.state.divergences >= self.fit.spec.on_divergence.patience() {
            return Err(FitError::Diverged { fault, checkpoint: None });
        }
        self.state.divergences += 1;
        let mut continued_from = self.state.step;
        if let Some(kept) = &self.kept {
            kept.restore(self.adapters, self.optimizer)?;
            self.state.updates = kept.updates;
            self.state.expert_updates.clone_from(&self.state.kept_expert_updates);
            continued_from = kept.step;
        }
        self.state.pass_over(batch);
        let report = DivergenceReport {
            step: fault.step,
            epoch: self.state.epoch,
            diverged: fault.what.name(),
            value: fault.value.to_string(),
            rows: fault.rows,
            continued_from,
            rolled_back: self.kept.is_some(),
        };
        self.write(&report)?;
        self.observer.observe(&Event::Diverged(&report));
        Ok(())
    }

    /// Writes the line, the evaluation and the checkpoint that are due at the present step. Breaks when the run is asked
    /// to stop during the evaluation, which is then still due.
    fn on_boundary(&mut self, is_end: bool) -> Result<ControlFlow<()>, FitError> {
        let (spec, step) = (self.fit.spec, self.state.step);
        let due = |every: u64| step > 0 && (is_end || step.is_multiple_of(every.max(1)));
        self.log_if_due(is_end)?;
        let evaluated = self.state.last_evaluation.as_ref().is_some_and(|last| last.step == step);
        if (step == 0 || due(spec.eval_steps)) && !evaluated && self.evaluate()?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if let Some((every, sample)) = self.fit.sample
            && !is_end
            && due(every)
        {
            sample(step, self.adapters, self.observer);
        }
        if due(spec.save_steps) {
            self.require_same_adapters()?;
            self.save()?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Notifies the observer of the step, and writes a line when one is due and any step was made since the last.
    fn log_if_due(&mut self, is_end: bool) -> Result<(), FitError> {
        let step = self.state.step;
        let is_due = step > 0 && (is_end || step.is_multiple_of(self.fit.spec.logging_steps.max(1)));
        let report = (is_due && self.state.window.count > 0).then(|| self.report());
        if let Some(report) = &report {
            self.write(report)?;
        }
        if self.state.step > self.reported_step {
            self.reported_step = self.state.step;
            self.observer.observe(&Event::Step { step: self.state.step, logged: report.as_ref() });
        }
        Ok(())
    }

    /// The line of the steps since the last one, whose sums begin anew.
    fn report(&mut self) -> StepReport {
        let window = std::mem::take(&mut self.state.window);
        let pace = std::mem::take(&mut self.pace);
        let load = std::mem::take(&mut self.state.expert_load);
        StepReport {
            step: self.state.step,
            epoch: self.state.epoch,
            loss: window.loss / window.count.max(1) as f64,
            grad_norm: window.grad_norm,
            learning_rate: window.learning_rate,
            tokens: self.state.tokens,
            tokens_per_second: pace.tokens as f64 / pace.time.as_secs_f64().max(1e-9),
            peak_memory_bytes: process::peak_resident_bytes(),
            device_memory_bytes: self.device_memory.map(|memory| memory.in_use),
            device_reserved_bytes: self.device_memory.map(|memory| memory.reserved),
            answers: window.statistics.and_then(|statistics| statistics.means()),
            experts: load.spread(),
        }
    }

    /// Evaluates the held-out rows, where there are any.
    fn evaluate(&mut self) -> Result<ControlFlow<()>, FitError> {
        let Some(held_out) = self.fit.held_out else { return Ok(ControlFlow::Continue(())) };
        let Some(report) = self.fit.evaluate(self.adapters, held_out()?, &self.state, self.observer)? else {
            return Ok(ControlFlow::Break(()));
        };
        self.write(&report)?;
        self.observer.observe(&Event::Evaluated(&report));
        // A checkpoint of this step that is on disk lacks the evaluation.
        self.saved_step = None;
        if self.state.evaluated(&report)
            && let Some(folder) = self.fit.folder
        {
            let path = folder.best();
            self.write_checkpoint(&path)?;
            self.observer.observe(&Event::Checkpoint { path, best: true });
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Makes sure that the ranks' adapters are the same: they are updated by the same numbers, and would differ only where
    /// devices compute differently.
    fn require_same_adapters(&self) -> Result<(), FitError> {
        if self.fit.team.is_alone() {
            return Ok(());
        }
        let mut digest = Sha256::new();
        for index in 0..self.adapters.parameters().len() {
            digest.update(to_bytes(&self.adapters.values(index)?));
        }
        let hashes = self.fit.team.gather(&digest.finalize())?;
        match hashes.iter().position(|hash| *hash != hashes[0]) {
            None => Ok(()),
            Some(rank) => Err(TeamError::Drifted { step: self.state.step, rank }.into()),
        }
    }

    /// Appends a line to the metrics.
    fn write(&mut self, line: &impl Serialize) -> Result<(), FitError> {
        Ok(self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(line))?)
    }

    /// Writes the checkpoint of this step, unless it is on disk. Only the first rank does; it returns the folder.
    fn save(&mut self) -> Result<Option<PathBuf>, FitError> {
        let Some(folder) = self.fit.folder else { return Ok(None) };
        let path = folder.checkpoint(self.state.step);
        if self.saved_step != Some(self.state.step) {
            self.write_checkpoint(&path)?;
            self.saved_step = Some(self.state.step);
            folder.prune_checkpoints(self.fit.spec.save_total_limit)?;
            if !self.state.expert_load_in_all.is_empty() {
                folder.write_expert_load(&self.state.expert_load_in_all)?;
            }
            self.observer.observe(&Event::Checkpoint { path: path.clone(), best: false });
        }
        Ok(Some(path))
    }

    /// The metrics first: a checkpoint counts on the lines before it.
    fn write_checkpoint(&self, path: &Path) -> Result<(), FitError> {
        if let Some(metrics) = &self.metrics {
            metrics.sync()?;
        }
        Ok(self.state.save(self.adapters, self.optimizer, self.kept.as_ref(), path)?)
    }

    fn stop(&mut self) -> Result<Ended, FitError> {
        self.read_step()?;
        self.log_if_due(false)?;
        self.save()?;
        Ok(Ended::Stopped)
    }

    /// Saves what was learned before `error`, and names the checkpoint of a step that diverged.
    fn save_before_failing(&mut self, error: FitError) -> FitError {
        let mut error = error.of(self.fit.device);
        let is_worth_saving = match &error {
            FitError::Folder(_)
            | FitError::Checkpoint(_)
            | FitError::Device { .. }
            | FitError::Team(TeamError::Drifted { .. }) => false,
            FitError::Diverged { fault, .. } => fault.what != Quantity::HeldOutLoss,
            FitError::Data(_) | FitError::Model(_) | FitError::Adapter(_) | FitError::Team(_) => true,
        };
        if self.state.step == 0 || !is_worth_saving {
            return error;
        }
        match (self.save(), &mut error) {
            (Ok(path), FitError::Diverged { checkpoint, .. }) => *checkpoint = path,
            (Ok(_), _) => {}
            (Err(second), _) => {
                let text = format!("what was learned since the last checkpoint could not be saved: {second}");
                self.observer.observe(&Event::Warning(text));
            }
        }
        error
    }
}
