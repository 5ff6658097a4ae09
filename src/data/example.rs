//! One training example, before any template or tokenizer: the common form of all record shapes. Knows nothing of
//! files, columns or tokens.

use serde::{Deserialize, Serialize};

/// Names one example: a row of one `[[dataset]]` entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowId {
    /// Position of the `[[dataset]]` entry in the recipe, from 0.
    pub dataset: u32,
    /// Row within that entry, from 0, over its files in sorted order.
    pub row: u64,
}

/// What is wrong with a row, before it is known where the row stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowProblem {
    /// JSON pointer of the field within the row (`/messages/0/content`); empty: the row as a whole.
    pub field: String,
    /// What was expected and what was found.
    pub problem: String,
}

impl RowProblem {
    /// A problem of one field.
    pub(crate) fn at(field: impl Into<String>, problem: impl ToString) -> RowProblem {
        RowProblem { field: field.into(), problem: problem.to_string() }
    }

    /// A problem of the row as a whole.
    pub(crate) fn whole(problem: impl ToString) -> RowProblem {
        RowProblem::at("", problem)
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text; empty where a record gives `null` because the turn only calls tools.
    pub content: String,
    /// All other keys of the message that are not null (`name`, `tool_calls`, …), for the template.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// One record, its shape resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum Example {
    /// A conversation of at least one message, to be rendered by the chat template.
    Messages(Vec<Message>),
    /// Two strings, joined without a separator (Alpaca's prompt is already filled in).
    PromptCompletion {
        /// The given text.
        prompt: String,
        /// The text to be learned.
        completion: String,
    },
    /// Running text.
    Text(String),
    /// Token ids. May be empty.
    Tokens {
        /// One id per token.
        input_ids: Vec<u32>,
        /// One label per token, at the token's own position: an id, or -100 for unsupervised.
        labels: Option<Vec<i64>>,
    },
}
