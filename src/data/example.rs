//! One training example, before any template or tokenizer: the common form of all record shapes. Knows nothing of
//! files, columns or tokens.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// Names one example: a row of one `[[dataset]]` entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowId {
    /// Position of the `[[dataset]]` entry in the recipe, from 0.
    pub dataset: u32,
    /// Row within that entry, from 0, over its files in sorted order.
    pub row: u64,
}

/// What is wrong with a row, without the row's place.
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

/// A conversation of at least one message, and its context.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
    /// The context.
    pub context: Context,
    /// How many of the messages are a prompt, which is not learned; 0: the roles say what is learned.
    pub given: usize,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// What a chat template is given beside the messages, as in transformers' `apply_chat_template`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Context {
    /// The functions that the assistant may call: a list of JSON schemas, or null.
    pub tools: Json,
    /// The documents that the assistant may read: a list of objects, or null.
    pub documents: Json,
    /// Further variables of the template.
    pub template_kwargs: Map<String, Json>,
}

/// Keys of a message that say whether the turn is learned. `weight` is OpenAI's, `train` and `training` are axolotl's.
pub(crate) const LEARNED_KEYS: [&str; 6] =
    [TRAIN_KEY, "weight", "training", "trainable", "loss", "loss_mask"];
/// The key among them that `fields` maps to another one.
pub(crate) const TRAIN_KEY: &str = "train";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text; empty where a record gives `null` because the turn only calls tools.
    pub content: String,
    /// All other keys of the message that are not null (`name`, `tool_calls`, …), for the template.
    pub extra: Map<String, Json>,
}

impl Message {
    /// A message that has nothing but its text.
    pub(crate) fn new(role: &str, content: impl Into<String>) -> Message {
        Message { role: role.to_owned(), content: content.into(), extra: Map::new() }
    }

    /// Whether the message itself says that it is learned (or not), with the key that says so.
    pub(crate) fn is_learned(&self) -> Option<(&'static str, bool)> {
        let learned = |value: &Json| value.as_bool().or(value.as_f64().map(|weight| weight != 0.0));
        let marks = || LEARNED_KEYS.iter().filter_map(|key| Some((*key, learned(self.extra.get(*key)?)?)));
        marks().find(|(_, is_learned)| !is_learned).or_else(|| marks().next())
    }
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
    /// A conversation, to be rendered by the chat template. The first message behind the given ones is an assistant's.
    Messages(Conversation),
}

impl Answer {
    /// The conversation; `None` for texts.
    fn messages(&self) -> Option<&[Message]> {
        match self {
            Self::Text { .. } => None,
            Self::Messages(conversation) => Some(&conversation.messages),
        }
    }
}

impl Example {
    /// The conversations in it: one, or both answers of a pair; none where it holds texts or tokens.
    pub(super) fn conversations(&self) -> Vec<&[Message]> {
        match self {
            Self::Conversation(conversation) => vec![&conversation.messages],
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
#[expect(clippy::large_enum_variant, reason = "a few exist at a time, each made into tokens at once")]
pub enum Example {
    /// To be rendered by the chat template.
    Conversation(Conversation),
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
