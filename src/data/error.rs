//! What can go wrong between the files and the micro-batches, in one place. Knows how each is said to a person.

use std::fmt;

use super::order::OrderError;
use super::source::{self, BadRows, RowError};
use super::template::TemplateError;
use super::tokenize::TokenizerError;
use crate::units::Grouped;

/// Data that cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A dataset cannot be opened.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// An epoch cannot be ordered.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A row cannot be used.
    #[error(transparent)]
    Row(#[from] RowError),
    /// Many rows, found by the survey.
    #[error(transparent)]
    Rows(#[from] BadRows),
    /// The chat template was stopped under way.
    #[error("{at}\n  {} of {} rows were looked at until then{}", Grouped(*seen), Grouped(*rows), Below(bad))]
    TemplateSpent {
        /// The row at which it was stopped, and why.
        at: Box<RowError>,
        /// Rows looked at until then.
        seen: u64,
        /// Rows in all.
        rows: u64,
        /// Those of them that cannot be used, be it that the template went to the limit of a single render.
        bad: Box<BadRows>,
    },
    /// A format that needs a tokenizer, and a model without one.
    #[error(
        "dataset `{path}` has format `{format}`, which needs a tokenizer, and the model's folder has no tokenizer.json; \
         add one, or use format `tokens`"
    )]
    NoTokenizer {
        /// The dataset's path, as the recipe has it.
        path: String,
        /// Its format.
        format: &'static str,
    },
    /// Conversations, and a tokenizer without a chat template.
    #[error(
        "dataset `{path}` has format `messages`, and the model's tokenizer has no chat template; name one in \
         `data.chat_template`: a Jinja file, or \"chatml\""
    )]
    NoTemplate {
        /// The dataset's path, as the recipe has it.
        path: String,
    },
    /// `train_on` at a dataset whose format has no such parts.
    #[error(
        "dataset `{path}`: `train_on` has no meaning for format `{format}`, {reason}; leave it out of this `[[dataset]]`"
    )]
    TrainOn {
        /// The dataset's path, as the recipe has it.
        path: String,
        /// Its format.
        format: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// No rows to train on.
    #[error(
        "nothing to train on: {rows} rows, all of them held out, of weight 0, or left out by `on_overflow` and `on_empty`"
    )]
    NothingLeft {
        /// Rows in the training files.
        rows: u64,
    },
    /// Neither `epochs` nor `max_steps`.
    #[error("the run has no end: give `epochs` or `max_steps`")]
    Endless,
    /// There is no such row.
    #[error("no row {row}: the datasets have {rows} rows, counted from 0")]
    NoSuchRow {
        /// As asked for.
        row: u64,
        /// How many there are.
        rows: u64,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,
    /// The threads that tokenize could not be started, or broke down.
    #[error("the tokenizing threads: {problem}")]
    Threads {
        /// What happened.
        problem: String,
    },
}

/// Bad rows below something else that is wrong; nothing where there are none.
struct Below<'a>(&'a BadRows);

impl fmt::Display for Below<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(formatter, "\n{}", self.0) }
    }
}
