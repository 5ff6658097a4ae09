//! The `[data]` table and the `[[dataset]]` entries of a recipe, as typed values.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The `[data]` table.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Longest sequence in tokens; also the size of a pack.
    pub max_seq_len: usize,
    /// Several examples per sequence, attention isolated between them.
    pub packing: bool,
    /// What to do with an example longer than `max_seq_len`.
    pub on_overflow: OnOverflow,
    /// What to do with an example in which no token is supervised.
    pub on_empty: OnEmpty,
    /// Which tokens are supervised; `None`: the default of each dataset's format.
    pub train_on: Option<TrainOn>,
    /// Share of the training rows held out for evaluation, in `[0, 1)`.
    pub val_split: f64,
    /// Visit the rows of an epoch in a pseudo-random order (else file order, datasets in turn).
    pub shuffle: bool,
    /// Replaces the tokenizer's own chat template.
    pub chat_template: Option<ChatTemplateSource>,
}

/// Where a chat template named by the recipe comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatTemplateSource {
    /// The built-in ChatML template.
    ChatMl,
    /// A Jinja file.
    File(PathBuf),
}

/// One `[[dataset]]` entry.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetSpec {
    /// A file, or a glob over files.
    pub path: String,
    /// The shape of a record.
    pub format: Format,
    /// How often each example is seen per epoch; fractions by a deterministic draw.
    pub weight: f64,
    /// Trained on, or held out.
    pub split: Split,
    /// Overrides [`Spec::train_on`] for this dataset.
    pub train_on: Option<TrainOn>,
    /// Canonical field name → the column's name in the files.
    pub fields: BTreeMap<String, String>,
}

/// The shape of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A list of chat messages, rendered by the chat template.
    Messages,
    /// `instruction`, optional `input`, `output`, rendered by Alpaca's published prompt.
    Alpaca,
    /// `prompt` and `completion`, joined as they stand.
    PromptCompletion,
    /// `text`, all of it supervised.
    Text,
    /// `input_ids` and optional `labels`, taken as they are.
    Tokens,
}

/// Which tokens the loss is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainOn {
    /// Every assistant turn, its end token included.
    Assistant,
    /// The last assistant turn only.
    LastAssistant,
    /// All that follows the prompt.
    Completion,
    /// Everything.
    All,
}

/// Which side of the evaluation a dataset stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Trained on.
    Train,
    /// Held out.
    Validation,
}

/// What happens to an example longer than the sequence length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOverflow {
    /// Stop with an error that names the rows.
    Error,
    /// Leave the example out, counted and named.
    Drop,
    /// Cut the end off, counted and named.
    Truncate,
}

/// What happens to an example without a supervised token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnEmpty {
    /// Stop with an error that names the rows.
    Error,
    /// Leave the example out, counted and named.
    Drop,
}
