//! The training loop.

pub mod spec;
