//! What happens after a step whose loss or gradient is not finite, as `train.on_divergence` says.
//!
//! - `"stop"`: the run ends.
//! - `"skip"`: the step changes nothing; the run goes on with the next rows, and ends when more than
//!   `divergence_patience` steps in a row diverge.
//! - `"rollback"`: adapter and optimizer go back to where they were at the last multiple of `rollback_steps`; the run
//!   goes on with the next rows, and ends when it would roll back to one snapshot more than `divergence_patience` times.
//!
//! On a GPU a step's numbers are read when the next step is launched. Until then the device itself makes sure that a step
//! that is not finite updates nothing, and what was computed ahead of such a step is recomputed.
//!
//! In either case the step counts, and the learning-rate schedule advances: a step is rows that were read, not an update
//! that was made. All of it depends on the recipe and the numbers alone, not on where checkpoints are.

use serde::Serialize;
use tune_kernels::KernelBackend;
use tune_kernels::adamw::Moments;

use super::optimizer::Optimizer;
use crate::adapter;
use crate::adapter::lora::LoraSet;
use crate::data::example::RowId;
use crate::document::Word;

/// At most this many rows of a step are named.
const ROWS_NAMED: usize = 20;
const DEFAULT_PATIENCE: u64 = 3;
const DEFAULT_ROLLBACK_STEPS: u64 = 50;

/// What to do with a diverged step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDivergence {
    /// End the run.
    #[default]
    Stop,
    /// Leave the step out.
    Skip {
        /// Diverged steps in a row that are tolerated.
        patience: u64,
    },
    /// Go back to an earlier adapter.
    Rollback {
        /// Rollbacks to one snapshot that are tolerated.
        patience: u64,
        /// Steps between snapshots.
        steps: u64,
    },
}

/// The value of `train.on_divergence`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Choice {
    #[default]
    Stop,
    Skip,
    Rollback,
}

impl Word for Choice {
    const WORDS: &'static [(&'static str, Self)] =
        &[("stop", Self::Stop), ("skip", Self::Skip), ("rollback", Self::Rollback)];
    const ALIASES: &'static [(&'static str, &'static str)] =
        &[("error", "stop"), ("abort", "stop"), ("ignore", "skip"), ("rewind", "rollback")];
}

impl OnDivergence {
    /// From the three keys of `[train]`; an absent number has its default.
    pub(super) fn of(choice: Choice, patience: Option<u64>, steps: Option<u64>) -> Self {
        let patience = patience.unwrap_or(DEFAULT_PATIENCE);
        match choice {
            Choice::Stop => Self::Stop,
            Choice::Skip => Self::Skip { patience },
            Choice::Rollback => Self::Rollback { patience, steps: steps.unwrap_or(DEFAULT_ROLLBACK_STEPS) },
        }
    }

    /// The three keys of `[train]`; a number that has no effect is absent.
    pub(super) fn keys(self) -> (Choice, Option<u64>, Option<u64>) {
        match self {
            Self::Stop => (Choice::Stop, None, None),
            Self::Skip { patience } => (Choice::Skip, Some(patience), None),
            Self::Rollback { patience, steps } => (Choice::Rollback, Some(patience), Some(steps)),
        }
    }

    /// How many divergences are tolerated.
    pub(super) fn patience(self) -> u64 {
        match self {
            Self::Stop => 0,
            Self::Skip { patience } | Self::Rollback { patience, .. } => patience,
        }
    }

    /// Whether a snapshot to roll back to is taken after `step`.
    pub(super) fn keeps(self, step: u64) -> bool {
        matches!(self, Self::Rollback { steps, .. } if step.is_multiple_of(steps.max(1)))
    }
}

/// What may not be finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// The loss of a step.
    Loss,
    /// The norm of all adapter gradients together.
    GradientNorm,
    /// The loss of an evaluation: the adapter itself is damaged.
    HeldOutLoss,
}

impl Quantity {
    /// Its name in messages and in `metrics.jsonl`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::GradientNorm => "gradient norm",
            Self::HeldOutLoss => "held-out loss",
        }
    }
}

/// A step or an evaluation with a number that is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The step, from 1; of an evaluation, the steps done.
    pub step: u64,
    /// Which number it is.
    pub what: Quantity,
    /// Its value: NaN or an infinity.
    pub value: f64,
    /// The rows it was computed from, by file and line; of many, the first.
    pub rows: Vec<String>,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { step, what, value, rows } = self;
        let (what, rows) = (what.name(), rows.join(", "));
        match step {
            0 => write!(formatter, "the {what} before the first step is {value}, made from {rows}"),
            step => write!(formatter, "the {what} of optimizer step {step} is {value}, made from {rows}"),
        }
    }
}

/// Rows, named by `place`; of many, the first and the number of the others.
pub(super) fn named_rows(
    rows: impl Iterator<Item = RowId> + Clone,
    place: &dyn Fn(RowId) -> String,
) -> Vec<String> {
    let mut named: Vec<String> = rows.clone().take(ROWS_NAMED).map(place).collect();
    match rows.count() - named.len() {
        0 => {}
        more => named.push(format!("and {more} more")),
    }
    named
}

/// A diverged step that was tolerated: its line in `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DivergenceReport {
    /// The step, from 1.
    pub step: u64,
    /// Examples consumed over examples per epoch.
    pub epoch: f64,
    /// `loss` or `gradient norm`.
    pub diverged: &'static str,
    /// `NaN`, `inf` or `-inf`.
    pub value: String,
    /// The rows of the step, by file and line.
    pub rows: Vec<String>,
    /// The step whose adapter the run went on with: the one before, or that of the snapshot.
    pub continued_from: u64,
    /// Whether the adapter was rolled back.
    pub rolled_back: bool,
}

/// Adapter and optimizer after a step.
#[derive(Debug)]
pub struct Snapshot<B: KernelBackend> {
    /// The step that it was taken after.
    pub step: u64,
    /// Updates made until then.
    pub updates: u64,
    /// In the order of [`LoraSet::parameters`].
    pub adapter: Vec<burn_tensor::Tensor<B, 2>>,
    /// Likewise.
    pub moments: Vec<Moments<B>>,
}

impl<B: KernelBackend> Snapshot<B> {
    /// Shares the tensors, which are never changed in place while they are shared.
    pub(super) fn of(adapters: &LoraSet<B>, optimizer: &Optimizer<B>, step: u64, updates: u64) -> Self {
        Self { step, updates, adapter: adapters.tensors().to_vec(), moments: optimizer.moments().to_vec() }
    }

    /// Restores adapter and optimizer.
    ///
    /// # Errors
    /// The snapshot belongs to other adapters.
    pub(super) fn restore(
        &self,
        adapters: &mut LoraSet<B>,
        optimizer: &mut Optimizer<B>,
    ) -> Result<(), adapter::Error> {
        adapters.update(|_| self.adapter.clone())?;
        optimizer.restore(self.moments.clone());
        Ok(())
    }
}
