//! Training as a whole, through the public recipe: against PEFT, and against itself.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests stop where they fail")]

mod common;
mod dora;
mod gradients;
mod kinds;
mod peft_roundtrip;
mod pins;
mod preference;
mod preference_kinds;
mod recurrent;
#[path = "../support/mod.rs"]
mod tensors;
mod training;
mod trajectory;
