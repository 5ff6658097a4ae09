//! The training loop: one optimizer step after another, what is told of it, and the folder it writes.

pub mod backward;
pub mod event;
pub mod fit;
pub mod folder;
pub mod memory;
pub mod optimizer;
pub mod schedule;
pub mod spec;
pub mod state;
