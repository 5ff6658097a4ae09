//! What a run reports while it is under way.
//!
//! The library never prints. It hands events to an [`Observer`]; the command line draws progress from them, and the
//! run folder's `metrics.jsonl` is written from the same [`StepReport`] and [`EvaluationReport`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::divergence::DivergenceReport;
use super::expert_load::Spread;
use super::gate::Verdict;
use super::memory::Plan;
use crate::adapter::target::Target;
use crate::data::survey::Survey;
use crate::objective::statistics::Means;

/// One logged line of training: the sums since the line before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Optimizer step, from 1.
    pub step: u64,
    /// Examples consumed over examples per epoch.
    pub epoch: f64,
    /// The objective's mean over the steps since the last line, each before its update: for SFT Σ negative log-likelihood /
    /// supervised tokens.
    pub loss: f64,
    /// Global norm of all adapter gradients, before clipping.
    pub grad_norm: f64,
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Tokens read since the start of the run.
    pub tokens: u64,
    /// Tokens per second of training time since the last line.
    pub tokens_per_second: f64,
    /// Largest resident memory of the process so far; `None` where the system does not report it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peak_memory_bytes: Option<u64>,
    /// The most memory that tensors took on a device with memory of its own, in bytes, sampled when a step's gradients are
    /// computed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device_memory_bytes: Option<u64>,
    /// The most that was allocated on such a device, in bytes, the free part of its pools included.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device_reserved_bytes: Option<u64>,
    /// Of a preference objective: means over the answers since the last line.
    #[serde(flatten, with = "means", default)]
    pub answers: Option<Means>,
    /// Of a mixture: how tokens were spread over its experts since the last line.
    #[serde(flatten)]
    pub experts: Spread,
}

/// One evaluation over the held-out examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// Optimizer steps done; 0 before the first.
    pub step: u64,
    /// Examples consumed over examples per epoch.
    pub epoch: f64,
    /// The objective's mean over all held-out examples: for SFT Σ negative log-likelihood / supervised tokens.
    pub eval_loss: f64,
    /// Supervised tokens of the held-out examples.
    pub eval_tokens: u64,
    /// Of a preference objective: means over the held-out answers, with `eval_` before their names.
    #[serde(flatten, with = "held_out_means", default)]
    pub answers: Option<Means>,
}

/// [`Means`] where there are any.
mod means {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Means;

    pub(super) fn serialize<S: Serializer>(means: &Option<Means>, serializer: S) -> Result<S::Ok, S::Error> {
        means.unwrap_or_default().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Means>, D::Error> {
        let means = Means::deserialize(deserializer)?;
        Ok(Some(means).filter(|means| means.preference_accuracy.is_some()))
    }
}

/// [`Means`] with `eval_` before their names.
mod held_out_means {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Means;

    #[derive(Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Named {
        #[serde(skip_serializing_if = "Option::is_none")]
        eval_reward_chosen: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        eval_reward_rejected: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        eval_reward_margin: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        eval_preference_accuracy: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        eval_logp_chosen: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        eval_logp_rejected: Option<f64>,
    }

    pub(super) fn serialize<S: Serializer>(means: &Option<Means>, serializer: S) -> Result<S::Ok, S::Error> {
        let [chosen, rejected, margin, accuracy, logp_chosen, logp_rejected] =
            means.map_or([None; Means::LENGTH], Means::to_array);
        Named {
            eval_reward_chosen: chosen,
            eval_reward_rejected: rejected,
            eval_reward_margin: margin,
            eval_preference_accuracy: accuracy,
            eval_logp_chosen: logp_chosen,
            eval_logp_rejected: logp_rejected,
        }
        .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Means>, D::Error> {
        let named = Named::deserialize(deserializer)?;
        let means = Means::from_array([
            named.eval_reward_chosen,
            named.eval_reward_rejected,
            named.eval_reward_margin,
            named.eval_preference_accuracy,
            named.eval_logp_chosen,
            named.eval_logp_rejected,
        ]);
        Ok(Some(means).filter(|means| means.preference_accuracy.is_some()))
    }
}

/// The answer to one of the recipe's sample prompts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The prompt.
    pub prompt: String,
    /// The answer of the base, before training.
    pub before: String,
    /// The answer with the adapter.
    pub after: String,
}

/// A step of a run's progress.
#[derive(Debug)]
pub enum Event<'a> {
    /// Weights are being read and quantized.
    Loading {
        /// Tensors loaded so far.
        done: u64,
        /// Tensors in all.
        total: u64,
    },
    /// Examples are being read and checked before training.
    Surveying {
        /// Rows read so far.
        done: u64,
        /// Rows in all.
        total: u64,
    },
    /// Every row was read and can be used.
    Surveyed(&'a Survey),
    /// The base, not yet trained, has answered the recipe's sample prompts: prompt and answer in turn.
    Answered(&'a [(String, String)]),
    /// The adapter as it is after a step has answered the recipe's sample prompts.
    Sampled {
        /// The step.
        step: u64,
        /// Prompt and answer in turn.
        answers: &'a [(String, String)],
    },
    /// The projections that get an adapter.
    Targets(&'a [Target]),
    /// Training is about to begin.
    Start(&'a Start),
    /// A held-out evaluation is under way.
    Evaluating {
        /// Examples done.
        done: u64,
        /// Examples in all.
        total: u64,
    },
    /// An optimizer step ended. `logged` is present when it ends a logging interval.
    Step {
        /// The step, from 1.
        step: u64,
        /// The logged line.
        logged: Option<&'a StepReport>,
    },
    /// A step whose loss or gradient is not finite, tolerated by `on_divergence`.
    Diverged(&'a DivergenceReport),
    /// An evaluation ended.
    Evaluated(&'a EvaluationReport),
    /// A checkpoint is on disk.
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// Whether it has the lowest held-out loss so far.
        best: bool,
    },
    /// The verdicts of the gates, after the run.
    Judged(&'a [Verdict]),
    /// A dataset or a file of the base changed on disk after it was read.
    InputChanged(String),
    /// Information for people.
    Note(String),
    /// A problem that does not stop the run.
    Warning(String),
}

/// The facts of a run, known before its first step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Start {
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// The step after which the run begins; 0 for a fresh run.
    pub done_steps: u64,
    /// Numbers that are trained.
    pub trainable_parameters: u64,
    /// Numbers in the base model.
    pub base_parameters: u64,
    /// Memory of the frozen weights as they are stored on the device.
    pub frozen_bytes: u64,
    /// Examples of the training side, per epoch.
    pub training_examples: u64,
    /// Held-out examples.
    pub held_out_examples: u64,
    /// Where the run writes.
    pub output_dir: PathBuf,
    /// Compute dtype and device.
    pub compute: String,
    /// The memory plan.
    pub plan: Plan,
    /// Steps between two evaluations.
    #[serde(skip)]
    pub eval_steps: u64,
    /// Ranks that train together.
    #[serde(skip)]
    pub ranks: usize,
}

/// Receives the events of a run.
pub trait Observer {
    /// Called on the training thread; must not block for long.
    fn observe(&mut self, event: &Event<'_>);
}

/// Two observers of one run.
pub struct Both<'a>(pub &'a mut dyn Observer, pub &'a mut dyn Observer);

impl Observer for Both<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        self.0.observe(event);
        self.1.observe(event);
    }
}
