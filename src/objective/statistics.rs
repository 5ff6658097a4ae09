//! What is reported of answers beside the loss: sums that the device makes, and the means of them.

use burn_tensor::Tensor;
use burn_tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::checkpoint::exact;
use crate::data::batch::Counts;

/// How many numbers a micro-batch's statistics are.
pub const LENGTH: usize = 5;

/// Sums over answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    #[serde(with = "exact")]
    reward_chosen: f64,
    #[serde(with = "exact")]
    reward_rejected: f64,
    #[serde(with = "exact")]
    logp_chosen: f64,
    #[serde(with = "exact")]
    logp_rejected: f64,
    /// Pairs whose chosen answer has the higher reward, or answers whose reward has the sign of their label.
    #[serde(with = "exact")]
    right: f64,
    /// Chosen or wanted answers.
    chosen: u64,
    /// Rejected or unwanted answers.
    rejected: u64,
    /// Pairs, or answers without a pair.
    groups: u64,
}

/// Means over the answers of some steps, or of an evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Means {
    /// Mean reward of chosen (or wanted) answers: β times the log-ratio to the reference, or what the objective has in its
    /// place. Absent without such answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reward_chosen: Option<f64>,
    /// The same of rejected (or unwanted) answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reward_rejected: Option<f64>,
    /// The first less the second.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reward_margin: Option<f64>,
    /// Share of pairs whose chosen answer has the higher reward; without pairs, share of answers whose reward is positive
    /// if they are wanted and negative if not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub preference_accuracy: Option<f64>,
    /// Mean log-probability of chosen (or wanted) answers, summed over their tokens.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub logp_chosen: Option<f64>,
    /// The same of rejected (or unwanted) answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub logp_rejected: Option<f64>,
}

impl Means {
    /// How many there are.
    pub const LENGTH: usize = 6;

    /// Their names in `metrics.jsonl`, in the order of [`Self::to_array`].
    pub const NAMES: [&'static str; Self::LENGTH] = [
        "reward_chosen",
        "reward_rejected",
        "reward_margin",
        "preference_accuracy",
        "logp_chosen",
        "logp_rejected",
    ];

    /// In the order of their declaration.
    pub fn to_array(self) -> [Option<f64>; Self::LENGTH] {
        [
            self.reward_chosen,
            self.reward_rejected,
            self.reward_margin,
            self.preference_accuracy,
            self.logp_chosen,
            self.logp_rejected,
        ]
    }

    /// From [`Self::to_array`].
    pub fn from_array(means: [Option<f64>; Self::LENGTH]) -> Self {
        let [reward_chosen, reward_rejected, reward_margin, preference_accuracy, logp_chosen, logp_rejected] =
            means;
        Self {
            reward_chosen,
            reward_rejected,
            reward_margin,
            preference_accuracy,
            logp_chosen,
            logp_rejected,
        }
    }
}

impl Statistics {
    /// Puts sums on the device behind each other, `[LENGTH]`.
    pub(super) fn on_device<B: Backend>(sums: [Tensor<B, 1>; LENGTH]) -> Tensor<B, 1> {
        Tensor::cat(sums.into(), 0)
    }

    /// What a device computed of micro-batches with such counts.
    pub fn of(sums: [f32; LENGTH], counts: &Counts) -> Self {
        let [reward_chosen, reward_rejected, logp_chosen, logp_rejected, right] = sums.map(f64::from);
        let Counts { documents, groups, chosen, .. } = *counts;
        let rejected = documents.saturating_sub(chosen);
        Self { reward_chosen, reward_rejected, logp_chosen, logp_rejected, right, chosen, rejected, groups }
    }

    /// Adds those of other micro-batches.
    pub fn extend(&mut self, other: &Self) {
        self.reward_chosen += other.reward_chosen;
        self.reward_rejected += other.reward_rejected;
        self.logp_chosen += other.logp_chosen;
        self.logp_rejected += other.logp_rejected;
        self.right += other.right;
        self.chosen += other.chosen;
        self.rejected += other.rejected;
        self.groups += other.groups;
    }

    /// The means; `None` before anything was added.
    pub fn means(&self) -> Option<Means> {
        let mean = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
        let reward_chosen = mean(self.reward_chosen, self.chosen);
        let reward_rejected = mean(self.reward_rejected, self.rejected);
        (self.groups > 0).then(|| Means {
            reward_chosen,
            reward_rejected,
            reward_margin: reward_chosen.zip(reward_rejected).map(|(chosen, rejected)| chosen - rejected),
            preference_accuracy: mean(self.right, self.groups),
            logp_chosen: mean(self.logp_chosen, self.chosen),
            logp_rejected: mean(self.logp_rejected, self.rejected),
        })
    }
}
