//! The `[gate]` table of a recipe: limits of the held-out loss for a run to count as a success.
//!
//! A gate is judged when the run is over and its adapter is on disk, by the evaluations before the first step and
//! after the last.

use serde::Serialize;

use super::event::EvaluationReport;
use crate::document::{Key, KeyTable, Limits, TableReader, Writer};

/// Limits of the held-out loss; without one there is no gate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spec {
    /// Nats per supervised token after the last step, at most.
    pub max_eval_loss: Option<f64>,
    /// The same as a factor of the loss before the first step, which is the base's (with `init_from`, that of the
    /// adapter the run starts from).
    pub max_eval_loss_ratio: Option<f64>,
    /// Lowest share of held-out pairs (or labelled answers) that are ranked as the data ranks them, after the last step;
    /// preference objectives only.
    pub min_preference_accuracy: Option<f64>,
}

/// One limit and the value that was compared with it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The recipe's key.
    pub gate: &'static str,
    /// The highest value that passes, or the lowest if the key begins with `min_`.
    pub limit: f64,
    /// The value that was measured.
    pub value: f64,
    /// Whether the value is within the limit.
    pub passed: bool,
}

impl Verdict {
    fn at_most(gate: &'static str, limit: f64, value: f64) -> Self {
        // NaN fails every gate.
        Self { gate, limit, value, passed: value <= limit }
    }

    fn at_least(gate: &'static str, limit: f64, value: f64) -> Self {
        Self { gate, limit, value, passed: value >= limit }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let relation = match (self.passed, self.gate.starts_with("min_")) {
            (true, _) => "within",
            (false, false) => "above",
            (false, true) => "below",
        };
        write!(formatter, "`{}`: {:.4} is {relation} {}", self.gate, self.value, self.limit)
    }
}

type K = Key<Spec>;

/// A gate judges an adapter and does not change it.
pub(crate) static TABLE: KeyTable<Spec> = KeyTable {
    path: "gate",
    meaning: "Limits of the held-out loss; a run above one ends with exit code 6.",
    keys: &[
        K::number("max_eval_loss", Limits::above(0.0).to(1e6), |gate| &mut gate.max_eval_loss)
            .bookkeeping()
            .optional("no limit")
            .means("Highest held-out loss after the last step, in nats per supervised token.")
            .also(&["eval_loss", "fail_if", "max_loss", "max_val_loss"]),
        K::number("max_eval_loss_ratio", Limits::above(0.0).to(1e6), |gate| &mut gate.max_eval_loss_ratio)
            .bookkeeping()
            .optional("no limit")
            .means("Highest held-out loss after the last step, as a factor of the loss before the first."),
        K::number("min_preference_accuracy", Limits::from(0.0).to(1.0), |gate| {
            &mut gate.min_preference_accuracy
        })
        .bookkeeping()
        .added()
        .optional("no limit")
        .means("Lowest share of held-out pairs that are ranked as the data ranks them, after the last step."),
    ],
    ..KeyTable::NEW
};

impl Spec {
    /// Reads the `[gate]` table.
    pub fn read(table: &mut TableReader<'_, '_>) -> Self {
        TABLE.read(table)
    }

    /// Writes the table if it has a key.
    pub fn write(&self, writer: &mut Writer) {
        if !self.is_empty() {
            TABLE.write(&mut self.clone(), writer);
        }
    }

    /// Whether there is no gate.
    pub fn is_empty(&self) -> bool {
        self.max_eval_loss.is_none()
            && self.max_eval_loss_ratio.is_none()
            && self.min_preference_accuracy.is_none()
    }

    /// Judges a finished run.
    pub fn judge(&self, first: &EvaluationReport, last: &EvaluationReport) -> Vec<Verdict> {
        let loss = self.max_eval_loss.map(|limit| Verdict::at_most("max_eval_loss", limit, last.eval_loss));
        let ratio = last.eval_loss / first.eval_loss;
        let factor =
            self.max_eval_loss_ratio.map(|limit| Verdict::at_most("max_eval_loss_ratio", limit, ratio));
        let accuracy = last.answers.and_then(|means| means.preference_accuracy).unwrap_or(f64::NAN);
        let accuracy = self
            .min_preference_accuracy
            .map(|limit| Verdict::at_least("min_preference_accuracy", limit, accuracy));
        loss.into_iter().chain(factor).chain(accuracy).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_at_its_limit_passes_and_nan_does_not() {
        let evaluation =
            |eval_loss| EvaluationReport { step: 0, epoch: 0.0, eval_loss, eval_tokens: 1, answers: None };
        let spec = Spec { max_eval_loss: Some(1.5), max_eval_loss_ratio: Some(0.75), ..Spec::default() };
        let passed = |first, last| -> Vec<bool> {
            spec.judge(&evaluation(first), &evaluation(last)).iter().map(|verdict| verdict.passed).collect()
        };
        assert_eq!(passed(2.0, 1.5), [true, true]);
        assert_eq!(passed(1.9, 1.5), [true, false]);
        assert_eq!(passed(4.0, 1.6), [false, true]);
        assert_eq!(passed(2.0, f64::NAN), [false, false]);
        assert!(Spec::default().judge(&evaluation(1.0), &evaluation(2.0)).is_empty());
    }

    #[test]
    fn an_accuracy_below_its_limit_or_unknown_does_not_pass() {
        let evaluation = |preference_accuracy| EvaluationReport {
            step: 0,
            epoch: 0.0,
            eval_loss: 1.0,
            eval_tokens: 1,
            answers: Some(crate::objective::statistics::Means { preference_accuracy, ..Default::default() }),
        };
        let spec = Spec { min_preference_accuracy: Some(0.8), ..Spec::default() };
        let judge = |accuracy| spec.judge(&evaluation(None), &evaluation(accuracy)).remove(0);
        assert!(judge(Some(0.8)).passed && !judge(Some(0.79)).passed && !judge(None).passed);
        assert_eq!(judge(Some(0.5)).to_string(), "`min_preference_accuracy`: 0.5000 is below 0.8");
    }
}
