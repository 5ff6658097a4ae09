//! Notes of the survey: what is not an error but should be known, and its text.

use std::fmt;

use crate::data::source::Place;
use crate::data::template::CLOCK;
use crate::units::Grouped;

/// Names that are not used, as many as are shown of a dataset.
const SHOWN_NAMES: usize = 20;

/// Something about the data that is not an error but should be known.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// The template writes today's date.
    Clock {
        /// The template's file.
        origin: String,
    },
    /// The tokenizer puts a BOS before plain text, but the template writes none.
    LacksBos {
        /// The template's file.
        origin: String,
    },
    /// Turns end in text that is not a special token.
    EndIsText {
        /// The text that ends a turn.
        end: String,
    },
    /// Nothing ends a turn.
    NoEnd {
        /// The template's file.
        origin: String,
    },
    /// Columns and keys of messages that are not used.
    Unread {
        /// Path of the dataset.
        path: String,
        /// Their names, each with the number of rows that have it; `None`: a column of the file's schema.
        names: Vec<(String, Option<u64>)>,
    },
    /// Each answer of a pair has a prompt of its own.
    CopiedPrompts,
    /// The template is not prefix-stable.
    Differential {
        /// Number of rows.
        rows: u64,
    },
    /// The template dropped thoughts of turns that are supervised.
    DroppedThoughts {
        /// Number of rows.
        rows: u64,
    },
    /// Turns are marked as not to be learned.
    Marked {
        /// Number of rows.
        rows: u64,
    },
    /// Turns have neither text nor thoughts nor tool calls.
    Silent {
        /// Number of rows.
        rows: u64,
    },
    /// The tokenizer cannot spell some supervised text.
    NotSpelled {
        /// Number of rows.
        rows: u64,
        /// The first such row.
        first: Place,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Clock { origin } => write!(
                formatter,
                "the chat template of {origin} writes today's date; training always sees {CLOCK}, so that a run can be \
                 repeated on any day"
            ),
            Note::LacksBos { origin } => write!(
                formatter,
                "the tokenizer puts a BOS before plain text, but the chat template of {origin} writes none; \
                 conversations are trained without BOS, as in transformers"
            ),
            Note::EndIsText { end } => write!(
                formatter,
                "assistant turns end in `{end}`, which is not a special token of this tokenizer: the model learns \
                 it as text, and generation has to stop at this text"
            ),
            Note::NoEnd { origin } => write!(
                formatter,
                "the chat template of {origin} writes nothing at the end of an assistant turn: the model will not \
                 learn where to stop"
            ),
            Note::Unread { path, names } => {
                let name = |(name, rows): &(String, Option<u64>)| match rows {
                    Some(1) => format!("`{name}` (1 row)"),
                    Some(rows) => format!("`{name}` ({} rows)", Grouped(*rows)),
                    None => format!("`{name}`"),
                };
                let shown: Vec<String> = names.iter().take(SHOWN_NAMES).map(name).collect();
                let more = match names.len() - shown.len() {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                write!(formatter, "{path}: not used: {}{more}", shown.join(", "))
            }
            Note::CopiedPrompts => formatter.write_str(
                "this model carries a state from token to token, so the prompt of a pair is computed once for each answer",
            ),
            Note::Differential { rows } => write!(
                formatter,
                "the chat template is not prefix-stable; in {} rows the supervised text was found by rendering \
                 the conversation again with other answers",
                Grouped(*rows)
            ),
            Note::DroppedThoughts { rows } => write!(
                formatter,
                "in {} rows the chat template does not show the thoughts of supervised assistant turns; the rest of \
                 those turns is supervised (`train_on = \"last-assistant\"` leaves earlier turns out)",
                Grouped(*rows)
            ),
            Note::Marked { rows } => write!(
                formatter,
                "in {} rows assistant turns are marked as not to be learned (`weight`, `train`, …) and are not supervised",
                Grouped(*rows)
            ),
            Note::Silent { rows } => write!(
                formatter,
                "in {} rows assistant turns have neither text nor thoughts nor tool calls and are not supervised",
                Grouped(*rows)
            ),
            Note::NotSpelled { rows, first } => write!(
                formatter,
                "in {} rows the supervised tokens do not decode to their text (the first: {first}): the tokenizer does \
                 not know some characters, or changes them",
                Grouped(*rows)
            ),
        }
    }
}
