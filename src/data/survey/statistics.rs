//! The survey in plain numbers, as they are stored with a run and printed for programs.

use serde::{Deserialize, Serialize};

use super::{Survey, Tally};

/// The rows of a run in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Rows that are trained on.
    pub train: Side,
    /// Rows that are held out.
    pub held_out: Side,
    /// Rows longer than the sequence length: cut or left out, as `on_overflow` says.
    pub overflowing_rows: u64,
    /// Rows left out because nothing in them is supervised.
    pub empty_rows: u64,
    /// The shape of the run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub schedule: Option<Shape>,
    /// What is not an error but should be known.
    pub notes: Vec<String>,
}

/// One side of the data. Each row counts once, whatever the weight of its dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// All rows.
    pub rows: u64,
    /// Rows that are used.
    pub used: u64,
    /// Tokens in the used rows.
    pub tokens: u64,
    /// Supervised tokens in the used rows.
    pub supervised_tokens: u64,
    /// Tokens of the longest used row.
    pub longest: u64,
    /// Used rows by length, in powers of two, without the empty powers at both ends.
    pub lengths: Vec<LengthBin>,
}

/// Rows of similar length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LengthBin {
    /// Least number of tokens; the rows have fewer than twice as many.
    pub tokens: u64,
    /// Number of rows.
    pub rows: u64,
}

/// The shape of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Optimizer steps of the whole first epoch, even if the run ends within it.
    pub steps_per_epoch: u64,
    /// Examples seen.
    pub examples: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Tokens in the largest micro-batch.
    pub largest_micro_batch: u64,
    /// Tokens in the longest document.
    pub longest_document: u64,
}

impl Statistics {
    /// The numbers of a survey.
    pub fn of(survey: &Survey) -> Self {
        Self {
            train: Side::of(&survey.train),
            held_out: Side::of(&survey.validation),
            overflowing_rows: survey.overflow.count,
            empty_rows: survey.empty.count,
            schedule: survey.schedule.map(|schedule| Shape {
                steps: schedule.steps,
                steps_per_epoch: schedule.steps_per_epoch,
                examples: schedule.examples,
                tokens: schedule.tokens,
                largest_micro_batch: schedule.largest_micro_batch,
                longest_document: schedule.longest_document,
            }),
            notes: survey.notes.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Side {
    fn of(tally: &Tally) -> Self {
        let filled = |count: &u64| *count > 0;
        let first = tally.histogram.iter().position(filled).unwrap_or(0);
        let end = tally.histogram.iter().rposition(filled).map_or(0, |last| last + 1);
        let lengths = (first..end)
            .zip(tally.histogram.iter().skip(first))
            .map(|(power, rows)| LengthBin { tokens: 1 << power, rows: *rows })
            .collect();
        Self {
            rows: tally.rows,
            used: tally.used,
            tokens: tally.tokens,
            supervised_tokens: tally.supervised_tokens,
            longest: tally.longest.map_or(0, |(tokens, _)| tokens.into()),
            lengths,
        }
    }
}
