//! The `[gate]` table of a recipe: what the held-out loss must be for a run to count as a success.
//!
//! A gate is judged when the run is over and its adapter is on disk, by the evaluations before the first step and
//! after the last.

use std::ops::Bound;

use serde::Serialize;

use super::event::EvaluationReport;
use crate::document::{TableReader, Writer, number};

/// Bounds that the held-out loss must keep; without one there is no gate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spec {
    /// Nats per supervised token after the last step, at most.
    pub max_eval_loss: Option<f64>,
    /// The same as a factor of the loss before the first step, which is the base's (with `init_from`, that of the
    /// adapter the run starts from).
    pub max_eval_loss_ratio: Option<f64>,
}

/// One bound and what was held against it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The recipe's key, `max_eval_loss` or `max_eval_loss_ratio`.
    pub gate: &'static str,
    /// What the recipe allows.
    pub limit: f64,
    /// What came out.
    pub value: f64,
    /// Within the limit.
    pub passed: bool,
}

impl Verdict {
    fn new(gate: &'static str, limit: f64, value: f64) -> Self {
        // What is no number is within no limit.
        Self { gate, limit, value, passed: value <= limit }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let relation = if self.passed { "within" } else { "above" };
        write!(formatter, "`{}`: {:.4} is {relation} {}", self.gate, self.value, self.limit)
    }
}

impl Spec {
    /// Reads the `[gate]` table.
    pub fn read(table: &mut TableReader<'_, '_>) -> Self {
        let bound = || number((Bound::Excluded(0.0), Bound::Included(1e6)));
        Self {
            max_eval_loss: table.key("max_eval_loss", bound()).optional(),
            max_eval_loss_ratio: table.key("max_eval_loss_ratio", bound()).optional(),
        }
    }

    /// Writes the table when it says something. A gate judges an adapter and does not change it.
    pub fn write(&self, writer: &mut Writer) {
        if self.is_empty() {
            return;
        }
        writer.bookkeeping_table("gate");
        writer.optional("max_eval_loss", self.max_eval_loss);
        writer.optional("max_eval_loss_ratio", self.max_eval_loss_ratio);
    }

    /// There is no gate.
    pub fn is_empty(&self) -> bool {
        self.max_eval_loss.is_none() && self.max_eval_loss_ratio.is_none()
    }

    /// Judges a finished run.
    pub fn judge(&self, first: &EvaluationReport, last: &EvaluationReport) -> Vec<Verdict> {
        let loss = self.max_eval_loss.map(|limit| Verdict::new("max_eval_loss", limit, last.eval_loss));
        let ratio = last.eval_loss / first.eval_loss;
        let factor = self.max_eval_loss_ratio.map(|limit| Verdict::new("max_eval_loss_ratio", limit, ratio));
        loss.into_iter().chain(factor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_at_its_limit_passes_and_what_is_no_number_does_not() {
        let evaluation = |eval_loss| EvaluationReport { step: 0, epoch: 0.0, eval_loss, eval_tokens: 1 };
        let spec = Spec { max_eval_loss: Some(1.5), max_eval_loss_ratio: Some(0.75) };
        let passed = |first, last| -> Vec<bool> {
            spec.judge(&evaluation(first), &evaluation(last)).iter().map(|verdict| verdict.passed).collect()
        };
        assert_eq!(passed(2.0, 1.5), [true, true]);
        assert_eq!(passed(1.9, 1.5), [true, false]);
        assert_eq!(passed(4.0, 1.6), [false, true]);
        assert_eq!(passed(2.0, f64::NAN), [false, false]);
        assert!(Spec::default().judge(&evaluation(1.0), &evaluation(2.0)).is_empty());
    }
}
