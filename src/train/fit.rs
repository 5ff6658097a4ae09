//! The training loop: accumulate, clip, update, log, evaluate, save.
//!
//! A device with a queue of its own is never waited for in vain: a step's update is launched before anybody knows its
//! loss, guarded on the device ([`tune_kernels::adamw::Guard`]), and its numbers are read once the next step is launched.
//! Only what is known counts: [`State`] stands behind the last step whose numbers were read, and an evaluation, a
//! checkpoint and the end are made when they are.
//!
//! Knows nothing of recipes, files of examples or devices: it is handed a decoder, adapters, a stream of optimizer
//! steps and a folder, and tells an [`Observer`] what happens. The stream may begin anywhere: what came before is in
//! the [`State`], and a run that was interrupted at any point ends with the same numbers as one that was not.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tune_kernels::memory::DeviceMemory;
use tune_kernels::{KernelBackend, Reading};

use super::backward::{Gradients, Pass, evaluate, forward_backward};
use super::budget::{Clock, Spent};
use super::divergence::{DivergenceReport, Fault, OnDivergence, Quantity, Snapshot, named_rows};
use super::event::{EvaluationReport, Event, Observer, StepReport};
use super::folder::{FolderError, RunFolder};
use super::memory;
use super::metrics::Metrics;
use super::optimizer::{Found, Gradient, Numbers, Optimizer};
use super::schedule::Schedule;
use super::spec::Spec;
use super::state::{Ended, Kept, State, StepResult};
use crate::adapter;
use crate::adapter::lora::{DropoutStep, LoraSet};
use crate::checkpoint;
use crate::data::batch::{MicroBatch, StepBatch};
use crate::data::corpus::ValidationStream;
use crate::data::error::Error as DataError;
use crate::data::example::RowId;
use crate::model::{self, Decoder};

/// Why training stopped short.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// A row could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The run folder could not be written.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A checkpoint could not be written.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A batch that the model cannot take.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The adapters and their gradients do not fit together.
    #[error(transparent)]
    Adapter(#[from] adapter::Error),
    /// The device computes no longer.
    #[error("{device} failed: {message}")]
    Device {
        /// What it is called.
        device: String,
        /// What its runtime says.
        message: String,
    },
    /// The loss or a gradient is no longer a number. What was learned before this step is in the newest checkpoint.
    #[error("{fault}")]
    Diverged {
        /// Which step, what it was, and the rows it was made from.
        fault: Fault,
        /// The checkpoint of the step before, where there is one.
        checkpoint: Option<PathBuf>,
    },
}

impl FitError {
    /// `device` failed, and its runtime says `message`.
    pub fn device(device: &str, message: String) -> Self {
        Self::Device { device: device.to_owned(), message }
    }
}

/// What the loop works on.
pub struct Fit<'a, B: KernelBackend> {
    /// The frozen base.
    pub decoder: &'a Decoder<B>,
    /// The `[train]` table.
    pub spec: &'a Spec,
    /// Seed of the run; dropout masks are keyed by it.
    pub seed: u64,
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// Held-out micro-batches, made afresh for each evaluation; `None` when no row is held out.
    pub held_out: Option<&'a dyn Fn() -> Result<ValidationStream, DataError>>,
    /// Held-out examples.
    pub held_out_examples: u64,
    /// Where the run writes.
    pub folder: &'a RunFolder,
    /// Asked again and again: should the run stop here, with a checkpoint?
    pub stop: &'a dyn Fn() -> bool,
    /// When `max_time` is spent.
    pub clock: Clock,
    /// Names a row for people.
    pub place: &'a dyn Fn(RowId) -> String,
    /// What messages call the device.
    pub device: &'a str,
    /// How many of the top layers keep what their backward pass needs.
    pub kept_layers: usize,
    /// The device has a queue of its own: each step is launched before the numbers of the one before are read.
    pub runs_ahead: bool,
}

/// Where a run begins.
pub struct Position<B: KernelBackend> {
    /// Its counters.
    pub state: State,
    /// The place to roll back to that the checkpoint held.
    pub kept: Option<Snapshot<B>>,
    /// The checkpoint that all of it was read from.
    pub saved: Option<PathBuf>,
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Where it stands: steps, tokens, losses, evaluations.
    pub state: State,
    /// How it ended.
    pub ended: Ended,
}

/// A step whose update is launched, and whose numbers are not known yet.
struct Launched {
    batch: StepBatch,
    learning_rate: f64,
    numbers: Numbers,
}

/// What is known now of a step that was launched.
#[derive(Clone, Copy, PartialEq)]
enum Learned {
    /// It was made, or there was none.
    Good,
    /// It diverged, and the run bears it: what was computed behind it is void.
    Diverged,
}

impl<B: KernelBackend> Fit<'_, B> {
    /// Trains `adapters` from `position` to the end of `steps`, or until told to stop.
    ///
    /// # Errors
    /// [`FitError`]: unreadable rows, an unwritable folder, or a loss that is not finite.
    pub fn run(
        &self,
        adapters: &mut LoraSet<B>,
        optimizer: &mut Optimizer<B>,
        Position { state, kept, saved }: Position<B>,
        steps: impl Iterator<Item = Result<StepBatch, DataError>>,
        observer: &mut dyn Observer,
    ) -> Result<Summary, FitError> {
        let metrics = Metrics::open(self.folder, &state)?;
        let mut running = Running {
            fit: self,
            adapters,
            optimizer,
            launched: None,
            since: Instant::now(),
            told_step: state.step,
            saved_step: (saved == Some(self.folder.checkpoint(state.step))).then_some(state.step),
            state,
            kept,
            metrics,
            observer,
            pace: Pace::default(),
            device_memory: None,
        };
        match running.train(steps) {
            Ok(ended) => Ok(Summary { state: running.state, ended }),
            Err(error) => Err(running.keep_what_was_good(error)),
        }
    }

    /// The gradient of one optimizer step; `None` when the run is asked to stop meanwhile.
    fn gradient(&self, adapters: &LoraSet<B>, batch: &StepBatch) -> Result<Option<Gradient<B>>, FitError> {
        let mut gradients = Gradients::new(self.decoder.layers().len());
        let mut losses = Vec::with_capacity(batch.micro_batches.len());
        for (index, micro_batch) in batch.micro_batches.iter().enumerate() {
            if index > 0 && (self.stop)() {
                return Ok(None);
            }
            let dropout = DropoutStep { seed: self.seed, step: batch.step, micro_batch: index as u32 };
            let pass = Pass { dropout, keep: self.kept_layers };
            losses.push(forward_backward(self.decoder, adapters, micro_batch, pass, &mut gradients)?);
        }
        let scale = 1.0 / batch.supervised_tokens.max(1) as f64;
        let values = gradients.by_parameter(adapters);
        Ok(Some(Gradient::new(losses, values, scale, self.decoder.device())))
    }

    fn report(&self, state: &State, pace: Pace, device: Option<DeviceMemory>) -> StepReport {
        StepReport {
            step: state.step,
            epoch: state.epoch,
            loss: state.window.nll / state.window.supervised_tokens.max(1) as f64,
            grad_norm: state.window.grad_norm,
            learning_rate: state.window.learning_rate,
            tokens: state.tokens,
            tokens_per_second: pace.tokens as f64 / pace.time.as_secs_f64().max(1e-9),
            peak_memory_bytes: memory::peak_resident_bytes(),
            device_memory_bytes: device.map(|memory| memory.in_use),
            device_reserved_bytes: device.map(|memory| memory.reserved),
        }
    }
}

/// Training time and tokens since the last logged line, of this process alone.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    time: Duration,
    tokens: u64,
}

/// A run under way.
struct Running<'r, 'f, B: KernelBackend> {
    fit: &'r Fit<'f, B>,
    adapters: &'r mut LoraSet<B>,
    optimizer: &'r mut Optimizer<B>,
    state: State,
    /// The place to roll back to.
    kept: Option<Snapshot<B>>,
    metrics: Metrics,
    observer: &'r mut dyn Observer,
    /// The step whose numbers are still to be read.
    launched: Option<Launched>,
    pace: Pace,
    /// The moment up to which `pace` counts.
    since: Instant,
    /// The step that the observer heard of last.
    told_step: u64,
    /// The step whose checkpoint is on disk.
    saved_step: Option<u64>,
    /// The most that the device's memory was seen to hold.
    device_memory: Option<DeviceMemory>,
}

impl<B: KernelBackend> Running<'_, '_, B> {
    fn train(
        &mut self,
        mut steps: impl Iterator<Item = Result<StepBatch, DataError>>,
    ) -> Result<Ended, FitError> {
        if matches!(self.fit.spec.on_divergence, OnDivergence::Rollback { .. }) && self.kept.is_none() {
            self.keep_place();
        }
        let mut ending = self.ending(false);
        if self.settle(ending.is_some())?.is_break() {
            return self.stop();
        }
        loop {
            if let Some(ended) = ending {
                return Ok(ended);
            }
            if (self.fit.stop)() {
                return self.stop();
            }
            let next = match steps.next() {
                None => Ok(None),
                Some(Ok(batch)) => self.gradient(&batch).map(|gradient| Some((batch, gradient))),
                Some(Err(error)) => Err(error.into()),
            };
            // While the device computes that: what came of the step before. A fault of that one comes first.
            let learned = self.learn()?;
            self.log_if_due(false)?;
            let Some((batch, mut gradient)) = next? else {
                ending = Some(Ended::Done);
                if self.settle(true)?.is_break() {
                    return self.stop();
                }
                continue;
            };
            if learned == Learned::Diverged {
                gradient = self.gradient(&batch)?;
            }
            let Some(gradient) = gradient.filter(|_| !(self.fit.stop)()) else { return self.stop() };
            let step = batch.step;
            self.update(batch, gradient)?;
            ending = self.ending(true);
            if !self.fit.runs_ahead || ending.is_some() || self.stands_still_after(step) {
                self.learn()?;
                if self.settle(ending.is_some())?.is_break() {
                    return self.stop();
                }
            }
        }
    }

    /// Why the run ends behind the last step that was launched, if it does. Time counts only once a step was made, so that
    /// a run that is resumed again and again gets on.
    fn ending(&self, has_stepped: bool) -> Option<Ended> {
        let (step, tokens) = match &self.launched {
            Some(Launched { batch, .. }) => (batch.step, self.state.tokens + batch.tokens() as u64),
            None => (self.state.step, self.state.tokens),
        };
        let is_late = || self.fit.clock.is_spent(step, has_stepped);
        let ended = State::ended_at(step, self.state.total_steps, tokens, &self.fit.spec.budget);
        ended.or_else(|| is_late().then_some(Ended::Budget(Spent::Time)))
    }

    /// Whether something is made behind `step` that needs its numbers.
    fn stands_still_after(&self, step: u64) -> bool {
        let due = |every: u64| step.is_multiple_of(every.max(1));
        due(self.fit.spec.save_steps) || (self.fit.held_out.is_some() && due(self.fit.spec.eval_steps))
    }

    /// Launches forward and backward of a step; `None` when the run is asked to stop meanwhile.
    fn gradient(&mut self, batch: &StepBatch) -> Result<Option<Gradient<B>>, FitError> {
        if self.launched.is_none() {
            self.since = Instant::now();
        }
        let gradient = self.fit.gradient(self.adapters, batch)?;
        self.look_at_device_memory();
        Ok(gradient)
    }

    /// Launches the update of a step.
    fn update(&mut self, batch: StepBatch, gradient: Gradient<B>) -> Result<(), FitError> {
        let learning_rate = self.fit.schedule.learning_rate(batch.step);
        let numbers = gradient.read_later();
        let (update, max_grad_norm) = (self.state.updates + 1, self.fit.spec.max_grad_norm);
        self.optimizer.step(self.adapters, gradient, update, learning_rate, max_grad_norm)?;
        self.launched = Some(Launched { batch, learning_rate, numbers });
        Ok(())
    }

    /// Reads the numbers of the step that was launched, and counts it.
    fn learn(&mut self) -> Result<Learned, FitError> {
        let Some(Launched { batch, learning_rate, numbers }) = self.launched.take() else {
            return Ok(Learned::Good);
        };
        let found = numbers.wait().map_err(|message| FitError::device(self.fit.device, message))?;
        let now = Instant::now();
        self.pace.time += now.duration_since(std::mem::replace(&mut self.since, now));
        self.pace.tokens += batch.tokens() as u64;
        match found {
            Found::Diverged(what, value) => {
                let rows = named_rows(&batch.micro_batches, self.fit.place);
                self.bear(&batch, Fault { step: batch.step, what, value, rows })?;
                Ok(Learned::Diverged)
            }
            Found::Finite { nll, norm } => {
                self.state.advance(&batch, StepResult { nll, grad_norm: norm, learning_rate });
                if matches!(self.fit.spec.on_divergence, OnDivergence::Skip { .. }) {
                    self.state.divergences = 0;
                }
                if self.fit.spec.on_divergence.keeps(self.state.step) {
                    self.state.divergences = 0;
                    self.keep_place();
                }
                Ok(Learned::Good)
            }
        }
    }

    /// A device keeps no record of its peak.
    fn look_at_device_memory(&mut self) {
        if let Some(now) = B::device_memory(self.fit.decoder.device()) {
            self.device_memory = Some(self.device_memory.unwrap_or_default().max(now));
        }
    }

    /// Takes what the run stands at as the place to roll back to.
    fn keep_place(&mut self) {
        let State { step, updates, .. } = self.state;
        self.kept = Some(Snapshot::of(self.adapters, self.optimizer, step, updates));
        self.state.kept = Some(Kept { step, updates });
    }

    /// Goes on behind a diverged step, as far as the recipe's patience reaches.
    fn bear(&mut self, batch: &StepBatch, fault: Fault) -> Result<(), FitError> {
        if self.state.divergences >= self.fit.spec.on_divergence.patience() {
            return Err(FitError::Diverged { fault, checkpoint: None });
        }
        self.state.divergences += 1;
        let mut continued_from = self.state.step;
        if let Some(kept) = &self.kept {
            kept.restore(self.adapters, self.optimizer)?;
            self.state.updates = kept.updates;
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
        self.metrics.write(&report)?;
        self.observer.observe(&Event::Diverged(&report));
        Ok(())
    }

    /// What is due where the run stands: a line, an evaluation, a checkpoint. Broken off when the run is asked to stop
    /// during the evaluation, which is then still due.
    fn settle(&mut self, is_end: bool) -> Result<ControlFlow<()>, FitError> {
        let (spec, step) = (self.fit.spec, self.state.step);
        let due = |every: u64| step > 0 && (is_end || step.is_multiple_of(every.max(1)));
        self.log_if_due(is_end)?;
        let evaluated = self.state.last_evaluation.as_ref().is_some_and(|last| last.step == step);
        if (step == 0 || due(spec.eval_steps)) && !evaluated && self.evaluate()?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if due(spec.save_steps) {
            self.save()?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Tells of the step, and writes a line when one is due and there is something to say.
    fn log_if_due(&mut self, is_end: bool) -> Result<(), FitError> {
        let step = self.state.step;
        let is_due = step > 0 && (is_end || step.is_multiple_of(self.fit.spec.logging_steps.max(1)));
        let report = (is_due && self.state.window.supervised_tokens > 0)
            .then(|| self.fit.report(&self.state, std::mem::take(&mut self.pace), self.device_memory));
        if let Some(report) = &report {
            self.state.window = Default::default();
            self.metrics.write(report)?;
        }
        if self.state.step > self.told_step {
            self.told_step = self.state.step;
            self.observer.observe(&Event::Step { step: self.state.step, logged: report.as_ref() });
        }
        Ok(())
    }

    /// Held-out loss now, when anything is held out.
    fn evaluate(&mut self) -> Result<ControlFlow<()>, FitError> {
        let Some(held_out) = self.fit.held_out else { return Ok(ControlFlow::Continue(())) };
        let (mut sum, mut tokens, mut examples) = (0.0, 0, 0);
        // Read when the next one is launched, as the steps are.
        let mut launched: Option<(MicroBatch, Reading)> = None;
        for micro_batch in held_out()? {
            let micro_batch = micro_batch?;
            if (self.fit.stop)() {
                return Ok(ControlFlow::Break(()));
            }
            self.observer.observe(&Event::Evaluating { done: examples, total: self.fit.held_out_examples });
            let loss = B::read_later(evaluate(self.fit.decoder, self.adapters, &micro_batch)?);
            self.add_held_out(launched.take(), &mut sum)?;
            tokens += micro_batch.supervised_tokens;
            examples += micro_batch.rows.len() as u64;
            launched = Some((micro_batch, loss));
            if !self.fit.runs_ahead {
                self.add_held_out(launched.take(), &mut sum)?;
            }
        }
        self.add_held_out(launched, &mut sum)?;
        let report = EvaluationReport {
            step: self.state.step,
            epoch: self.state.epoch,
            eval_loss: sum / tokens.max(1) as f64,
            eval_tokens: tokens,
        };
        self.metrics.write(&report)?;
        self.observer.observe(&Event::Evaluated(&report));
        // A checkpoint of this step that is on disk lacks the evaluation.
        self.saved_step = None;
        if self.state.evaluated(&report) {
            let path = self.fit.folder.best();
            self.write_checkpoint(&path)?;
            self.observer.observe(&Event::Checkpoint { path, best: true });
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Adds the loss of a micro-batch to the sum of an evaluation.
    fn add_held_out(&self, launched: Option<(MicroBatch, Reading)>, sum: &mut f64) -> Result<(), FitError> {
        let Some((micro_batch, loss)) = launched else { return Ok(()) };
        let losses = loss.wait().map_err(|message| FitError::device(self.fit.device, message))?;
        *sum += losses.into_iter().map(f64::from).sum::<f64>();
        if sum.is_finite() {
            return Ok(());
        }
        let rows = named_rows(std::slice::from_ref(&micro_batch), self.fit.place);
        let fault = Fault { step: self.state.step, what: Quantity::HeldOutLoss, value: *sum, rows };
        Err(FitError::Diverged { fault, checkpoint: None })
    }

    /// Writes the checkpoint of this step, unless it is on disk.
    fn save(&mut self) -> Result<PathBuf, FitError> {
        let path = self.fit.folder.checkpoint(self.state.step);
        if self.saved_step != Some(self.state.step) {
            self.write_checkpoint(&path)?;
            self.saved_step = Some(self.state.step);
            self.fit.folder.prune_checkpoints(self.fit.spec.save_total_limit)?;
            self.observer.observe(&Event::Checkpoint { path: path.clone(), best: false });
        }
        Ok(path)
    }

    /// The metrics first: a checkpoint counts on the lines before it.
    fn write_checkpoint(&self, path: &std::path::Path) -> Result<(), FitError> {
        self.metrics.sync()?;
        Ok(self.state.save(self.adapters, self.optimizer, self.kept.as_ref(), path)?)
    }

    fn stop(&mut self) -> Result<Ended, FitError> {
        self.learn()?;
        self.log_if_due(false)?;
        self.save()?;
        Ok(Ended::Stopped)
    }

    /// Saves what was learned before `error`, and names the checkpoint of a step that diverged.
    fn keep_what_was_good(&mut self, mut error: FitError) -> FitError {
        let is_worth_saving = match &error {
            FitError::Folder(_) | FitError::Checkpoint(_) | FitError::Device { .. } => false,
            FitError::Diverged { fault, .. } => fault.what != Quantity::HeldOutLoss,
            FitError::Data(_) | FitError::Model(_) | FitError::Adapter(_) => true,
        };
        if self.state.step == 0 || !is_worth_saving {
            return error;
        }
        match (self.save(), &mut error) {
            (Ok(path), FitError::Diverged { checkpoint, .. }) => *checkpoint = Some(path),
            (Ok(_), _) => {}
            (Err(second), _) => {
                let text = format!("what was learned since the last checkpoint could not be saved: {second}");
                self.observer.observe(&Event::Warning(text));
            }
        }
        error
    }
}
