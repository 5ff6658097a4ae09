//! Every error between the files and the micro-batches, and its text.

use super::order::OrderError;
use super::source::{self, BadRows, RowError};
use super::template::TemplateError;
use super::tokenize::TokenizerError;

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
    /// A format that needs a tokenizer, and a model without one.
    #[error(
        "dataset `{path}` has format `{format}`, which needs a tokenizer, but the model's folder has no tokenizer.json; \
         add the file, or use format `tokens`"
    )]
    NoTokenizer {
        /// The dataset's path, as the recipe has it.
        path: String,
        /// Its format.
        format: &'static str,
    },
    /// Conversations, and a tokenizer without a chat template.
    #[error(
        "dataset `{path}` has format `messages`, but the model's tokenizer has no chat template; name one in \
         `data.chat_template`: a Jinja file, or \"chatml\""
    )]
    NoTemplate {
        /// The dataset's path, as the recipe has it.
        path: String,
    },
    /// `train_on` for a format that has no turns.
    #[error(
        "dataset `{path}`: `train_on` has no meaning for format `{format}`, {reason}; remove it from this `[[dataset]]`"
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
        /// The row that was asked for.
        row: u64,
        /// Number of rows.
        rows: u64,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,
    /// The tokenizing threads could not be started, or panicked.
    #[error("the tokenizing threads failed: {problem}")]
    Threads {
        /// What happened.
        problem: String,
    },
}
