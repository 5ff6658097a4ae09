//! What the survey found that is no error, but should be known; and how each is said.

use std::fmt;

use crate::data::source::Place;
use crate::data::template::CLOCK;
use crate::units::Grouped;

/// Something about the data that is no error, but should be known.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// The template writes today's date.
    Clock {
        /// Of the template.
        origin: String,
    },
    /// The tokenizer puts a BOS before plain text, but the template writes none.
    LacksBos {
        /// Of the template.
        origin: String,
    },
    /// Turns end in text that is no special token.
    EndIsText {
        /// That text.
        end: String,
    },
    /// Turns end in nothing.
    NoEnd {
        /// Of the template.
        origin: String,
    },
    /// The template is not prefix-stable.
    Differential {
        /// In so many rows.
        rows: u64,
    },
    /// The template dropped thoughts of turns that are supervised.
    DroppedThoughts {
        /// In so many rows.
        rows: u64,
    },
    /// The tokenizer cannot spell some supervised text.
    NotSpelled {
        /// In so many rows.
        rows: u64,
        /// The first of them.
        first: Place,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Clock { origin } => write!(
                formatter,
                "the chat template of {origin} writes today's date; training always sees {}, so that it can be \
                 repeated on any day",
                CLOCK
            ),
            Note::LacksBos { origin } => write!(
                formatter,
                "the tokenizer puts a BOS before plain text, but the chat template of {origin} writes none; \
                 conversations are trained without, as transformers would feed them"
            ),
            Note::EndIsText { end } => write!(
                formatter,
                "assistant turns end in `{end}`, which is no special token of this tokenizer: it is learned as text, \
                 and whoever generates has to stop at it as text"
            ),
            Note::NoEnd { origin } => write!(
                formatter,
                "the chat template of {origin} ends assistant turns with nothing that can be seen: the model will not \
                 learn where to stop"
            ),
            Note::Differential { rows } => write!(
                formatter,
                "the chat template is not prefix-stable; in {} rows the supervised text was found by where the \
                 rendering changes with the answer",
                Grouped(*rows)
            ),
            Note::DroppedThoughts { rows } => write!(
                formatter,
                "in {} rows the chat template drops the thoughts of earlier assistant turns; what is left of those \
                 turns is supervised (`train_on = \"last-assistant\"` leaves them out)",
                Grouped(*rows)
            ),
            Note::NotSpelled { rows, first } => write!(
                formatter,
                "in {} rows the supervised tokens do not spell the text they stand for (the first: {first}): the \
                 tokenizer does not know some characters, or changes them",
                Grouped(*rows)
            ),
        }
    }
}
