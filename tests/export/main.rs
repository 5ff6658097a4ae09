//! Adapters on their way out: merged as PEFT merges them, verified, rewritten for other programs; and refused where
//! the result would not be what was trained.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

mod combined;
mod exported;
mod merged;
mod quantized;
mod refused;
mod stacked;
mod support;
mod tables;
#[path = "../support/mod.rs"]
mod tensors;
mod verified;
