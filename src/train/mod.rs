//! The training loop: one optimizer step after another, what it reports, and the folder it writes.
#![doc = include_str!("ranks.md")]

pub mod backward;
mod balance;
pub mod budget;
mod cgroup;
pub mod compare;
pub mod divergence;
pub mod error;
pub mod event;
mod exchange;
pub mod expert_load;
pub mod fit;
pub mod folder;
pub mod gate;
mod held_out;
pub mod lanes;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod pieces;
pub mod placement;
pub mod process;
pub mod resume;
mod running;
pub mod saved_inputs;
pub mod schedule;
pub mod spec;
pub mod state;
pub mod team;

#[cfg(test)]
mod tests;
