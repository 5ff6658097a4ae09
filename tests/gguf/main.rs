//! GGUF files beside what llama.cpp's converter writes, and beside what llama.cpp computes from them
//! (`tests/golden/gguf_files.py`, `gguf_tokens.py`); and refusals, which leave nothing behind.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests stop where they fail")]

mod computed;
mod experts;
mod measured;
mod reader;
mod refused;
mod support;
#[path = "../support/mod.rs"]
mod tensors;
mod written;
