//! One training example as the files hold it, before any template or tokenizer: what every record shape
//! becomes. Knows nothing of files, columns or tokens to come.

use serde::{Deserialize, Serialize};

/// Names one example: a row of one `[[dataset]]` entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowId {
    /// Position of the `[[dataset]]` entry in the recipe, from 0.
    pub dataset: u32,
    /// Row within that entry, from 0, over its files in sorted order.
    pub row: u64,
}

/// Why a row cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// What stands in it.
    Row,
    /// The chat template is asked no more, since it took too much before. The row may be as good as any.
    SpentTemplate,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said; empty where a record gives `null` because the turn only calls tools.
    pub content: String,
    /// All other keys of the message that are not null (`name`, `tool_calls`, …), for the template.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// One record, its shape resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum Example {
    /// A conversation of at least one message, to be rendered by the chat template.
    Messages(Vec<Message>),
    /// Two strings, joined as they stand (Alpaca's prompt is already filled in).
    PromptCompletion {
        /// What is given.
        prompt: String,
        /// What is to be learned.
        completion: String,
    },
    /// Running text.
    Text(String),
    /// Token ids, taken as they are. May be empty.
    Tokens {
        /// One id per token.
        input_ids: Vec<u32>,
        /// One label per token, at the token's own position: an id, or -100 for unsupervised.
        labels: Option<Vec<i64>>,
    },
}
