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

/// A prompt and an answer to it.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Two strings, joined as they stand.
    Text {
        /// What is given.
        prompt: String,
        /// What is compared or judged.
        answer: String,
    },
    /// A conversation, to be rendered by the chat template.
    Messages {
        /// All of it.
        messages: Vec<Message>,
        /// How many of its messages are the prompt; the first behind them is an assistant's.
        prompt: usize,
    },
}

impl Answer {
    /// The conversation; `None` for texts.
    fn messages(&self) -> Option<&[Message]> {
        match self {
            Self::Text { .. } => None,
            Self::Messages { messages, .. } => Some(messages),
        }
    }
}

impl Example {
    /// The conversations in it: one, or both answers of a pair; none where it holds texts or tokens.
    pub(super) fn conversations(&self) -> Vec<&[Message]> {
        match self {
            Self::Messages(messages) => vec![messages],
            Self::Preference { chosen, rejected } => {
                [chosen, rejected].into_iter().filter_map(Answer::messages).collect()
            }
            Self::Feedback { answer, .. } => answer.messages().into_iter().collect(),
            Self::PromptCompletion { .. } | Self::Text(_) | Self::Tokens { .. } => Vec::new(),
        }
    }
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
    /// Two answers to one prompt.
    Preference {
        /// The preferred one.
        chosen: Answer,
        /// The other.
        rejected: Answer,
    },
    /// A single answer.
    Feedback {
        /// The answer.
        answer: Answer,
        /// Whether it is wanted.
        wanted: bool,
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
