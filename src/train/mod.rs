//! The training loop: one optimizer step after another, what it reports, and the folder it writes.

pub mod backward;
pub mod budget;
mod cgroup;
pub mod compare;
pub mod divergence;
pub mod error;
pub mod event;
pub mod fit;
pub mod folder;
pub mod gate;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod pieces;
pub mod placement;
pub mod process;
pub mod resume;
mod running;
pub mod schedule;
pub mod spec;
pub mod state;

#[cfg(test)]
mod tests;
