//! The training loop: accumulate, clip, update, log, evaluate, save.
//!
//! Knows nothing of recipes, files of examples or devices: it is handed a decoder, adapters, a stream of optimizer
//! steps and a folder, and tells an [`Observer`] what happens.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tune_kernels::KernelBackend;

use super::backward::{Gradients, Pass, evaluate, forward_backward};
use super::event::{EvaluationReport, Event, Observer, StepReport};
use super::folder::{FolderError, Metrics, RunFolder};
use super::memory;
use super::optimizer::{Gradient, Optimizer, global_norm};
use super::schedule::Schedule;
use super::spec::Spec;
use super::state::{State, Window};
use crate::adapter;
use crate::adapter::lora::{DropoutStep, LoraSet};
use crate::checkpoint;
use crate::data::batch::StepBatch;
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
    /// The loss or a gradient is no longer a number. What was learned before this step is in the newest checkpoint.
    #[error("the {what} of optimizer step {step} is {value}")]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// The value found.
        value: f64,
        /// The rows the step was made from.
        rows: Vec<RowId>,
        /// The checkpoint of the step before, where there is one.
        checkpoint: Option<PathBuf>,
    },
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
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// Held-out micro-batches, made afresh for each evaluation; `None` when no row is held out.
    pub held_out: Option<&'a dyn Fn() -> Result<ValidationStream, DataError>>,
    /// Held-out examples.
    pub held_out_examples: u64,
    /// Where the run writes.
    pub folder: &'a RunFolder,
    /// Asked after every step: should the run stop here, with a checkpoint?
    pub stop: &'a dyn Fn() -> bool,
    /// Memory that kept activations may take, in bytes.
    pub activation_budget: u64,
    /// Bytes of one number in the compute dtype.
    pub compute_bytes: u64,
}

/// How a run went.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Optimizer steps done.
    pub steps: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Loss of the last optimizer step, before its update.
    pub last_loss: Option<f64>,
    /// Held-out loss before the first step.
    pub first_evaluation: Option<EvaluationReport>,
    /// Held-out loss after the last evaluation.
    pub last_evaluation: Option<EvaluationReport>,
    /// The run was asked to stop before its last step.
    pub stopped: bool,
}

impl<B: KernelBackend> Fit<'_, B> {
    /// Trains `adapters` from `state` to the end of `steps`, or until told to stop.
    ///
    /// # Errors
    /// [`FitError`]: unreadable rows, an unwritable folder, or a loss that is not finite.
    pub fn run(
        &self,
        adapters: &mut LoraSet<B>,
        optimizer: &mut Optimizer<B>,
        mut state: State,
        steps: impl Iterator<Item = Result<StepBatch, DataError>>,
        observer: &mut dyn Observer,
    ) -> Result<Summary, FitError> {
        let mut metrics = Metrics::open(self.folder)?;
        let mut summary = Summary {
            steps: state.step,
            tokens: state.tokens,
            last_loss: None,
            first_evaluation: None,
            last_evaluation: None,
            stopped: false,
        };
        if state.step == 0 {
            state.first_evaluation = self.evaluate(adapters, &state, &mut metrics, observer)?;
        }
        summary.first_evaluation = state.first_evaluation.clone();
        summary.last_evaluation = state.first_evaluation.clone();
        let mut training_time = Duration::ZERO;
        for batch in steps {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    return Err(self.keep_what_was_good(
                        adapters,
                        optimizer,
                        &state,
                        error.into(),
                        observer,
                    )?);
                }
            };
            let began = Instant::now();
            let learning_rate = self.schedule.learning_rate(batch.step);
            let (sum, norm) = match self.step(adapters, optimizer, &batch, learning_rate) {
                Ok(done) => done,
                Err(error) => {
                    return Err(self.keep_what_was_good(adapters, optimizer, &state, error, observer)?);
                }
            };
            training_time += began.elapsed();

            let tokens = batch.tokens() as u64;
            state.advance(&batch, sum, tokens);
            let last = state.step >= self.total_steps;
            let report = (state.step.is_multiple_of(self.spec.logging_steps.max(1)) || last).then(|| {
                let window = std::mem::take(&mut state.window);
                self.report(&state, window, norm, learning_rate, std::mem::take(&mut training_time))
            });
            if let Some(report) = &report {
                metrics.write(report)?;
            }
            summary.last_loss = Some(sum / batch.supervised_tokens.max(1) as f64);
            observer.observe(&Event::Step { step: state.step, logged: report.as_ref() });
            summary.steps = state.step;
            summary.tokens = state.tokens;

            let stopping = !last && (self.stop)();
            let evaluated = (last || state.step.is_multiple_of(self.spec.eval_steps.max(1))) && !stopping;
            if evaluated && let Some(evaluation) = self.evaluate(adapters, &state, &mut metrics, observer)? {
                if state.is_best(evaluation.eval_loss) {
                    state.best_eval_loss = Some(evaluation.eval_loss);
                    self.save_best(adapters, optimizer, &state, observer)?;
                }
                summary.last_evaluation = Some(evaluation);
            }
            if last || stopping || state.step.is_multiple_of(self.spec.save_steps.max(1)) {
                self.save(adapters, optimizer, &state, observer)?;
            }
            if stopping {
                summary.stopped = true;
                break;
            }
            if last {
                break;
            }
        }
        Ok(summary)
    }

    /// One optimizer step: Σ nll over its supervised tokens and the gradient norm before clipping.
    fn step(
        &self,
        adapters: &mut LoraSet<B>,
        optimizer: &mut Optimizer<B>,
        batch: &StepBatch,
        learning_rate: f64,
    ) -> Result<(f64, f64), FitError> {
        let diverged = |what, value| FitError::Diverged {
            step: batch.step,
            what,
            value,
            rows: batch
                .micro_batches
                .iter()
                .flat_map(|micro_batch| micro_batch.rows.iter().copied())
                .collect(),
            checkpoint: None,
        };
        let scale = 1.0 / batch.supervised_tokens.max(1) as f64;
        let mut gradients = Gradients::new(self.decoder.layers().len());
        let mut sum = 0.0;
        for (index, micro_batch) in batch.micro_batches.iter().enumerate() {
            let dropout = DropoutStep { seed: self.seed, step: batch.step, micro_batch: index as u32 };
            let tokens = micro_batch.input_ids.len() as u64;
            let keep = memory::layers_to_keep(
                self.decoder.spec(),
                tokens,
                self.compute_bytes,
                self.activation_budget,
            );
            let pass = Pass { dropout, keep };
            sum += forward_backward(self.decoder, adapters, micro_batch, pass, &mut gradients)?;
            if !sum.is_finite() {
                return Err(diverged("loss", sum * scale));
            }
        }
        let gradients = gradients.by_parameter(adapters);
        let norm = scale * global_norm(&gradients);
        if !norm.is_finite() {
            return Err(diverged("gradient norm", norm));
        }
        let update = Gradient { values: gradients, scale, norm };
        optimizer.step(adapters, update, learning_rate, self.spec.max_grad_norm)?;
        Ok((sum, norm))
    }

    /// Saves the state before a step that could not be made, and names the checkpoint of a step that diverged.
    fn keep_what_was_good(
        &self,
        adapters: &LoraSet<B>,
        optimizer: &Optimizer<B>,
        state: &State,
        mut error: FitError,
        observer: &mut dyn Observer,
    ) -> Result<FitError, FitError> {
        if state.step == 0 {
            return Ok(error);
        }
        let path = self.folder.checkpoint(state.step);
        if !path.is_dir() {
            self.save(adapters, optimizer, state, observer)?;
        }
        if let FitError::Diverged { checkpoint, .. } = &mut error {
            *checkpoint = Some(path);
        }
        Ok(error)
    }

    fn report(
        &self,
        state: &State,
        window: Window,
        norm: f64,
        learning_rate: f64,
        time: Duration,
    ) -> StepReport {
        StepReport {
            step: state.step,
            epoch: state.epoch,
            loss: window.nll / window.supervised_tokens.max(1) as f64,
            grad_norm: norm,
            learning_rate,
            tokens: state.tokens,
            tokens_per_second: window.tokens as f64 / time.as_secs_f64().max(1e-9),
            peak_memory_bytes: memory::peak_resident_bytes(),
        }
    }

    /// Held-out loss now; `None` when nothing is held out.
    fn evaluate(
        &self,
        adapters: &LoraSet<B>,
        state: &State,
        metrics: &mut Metrics,
        observer: &mut dyn Observer,
    ) -> Result<Option<EvaluationReport>, FitError> {
        let Some(held_out) = self.held_out else { return Ok(None) };
        let (mut sum, mut tokens, mut examples) = (0.0, 0, 0);
        for micro_batch in held_out()? {
            let micro_batch = micro_batch?;
            observer.observe(&Event::Evaluating { done: examples, total: self.held_out_examples });
            sum += evaluate(self.decoder, adapters, &micro_batch)?;
            tokens += micro_batch.supervised_tokens;
            examples += micro_batch.rows.len() as u64;
        }
        let report = EvaluationReport {
            step: state.step,
            epoch: state.epoch,
            eval_loss: sum / tokens.max(1) as f64,
            eval_tokens: tokens,
        };
        metrics.write(&report)?;
        observer.observe(&Event::Evaluated(&report));
        Ok(Some(report))
    }

    fn save(
        &self,
        adapters: &LoraSet<B>,
        optimizer: &Optimizer<B>,
        state: &State,
        observer: &mut dyn Observer,
    ) -> Result<(), FitError> {
        let path = self.folder.checkpoint(state.step);
        state.save(adapters, optimizer, &path)?;
        self.folder.prune_checkpoints(self.spec.save_total_limit)?;
        observer.observe(&Event::Checkpoint { path, best: false });
        Ok(())
    }

    fn save_best(
        &self,
        adapters: &LoraSet<B>,
        optimizer: &Optimizer<B>,
        state: &State,
        observer: &mut dyn Observer,
    ) -> Result<(), FitError> {
        let path = self.folder.best();
        state.save(adapters, optimizer, &path)?;
        observer.observe(&Event::Checkpoint { path, best: true });
        Ok(())
    }
}
