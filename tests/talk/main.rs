//! Talking to a model: against what transformers generates and measures, and on the command line, typed and piped.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests stop where they fail")]

mod chat;
mod eval;
mod generate;
mod golden;
mod support;
