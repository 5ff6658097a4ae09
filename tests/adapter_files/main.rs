//! Adapter folders: PEFT's own are read, ours are read back and written alike twice, and what does not fit is
//! named.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

mod common;
mod golden;
mod refused;
mod written;
