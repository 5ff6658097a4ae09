//! Runs that are interrupted, starved, sabotaged or bounded: what they leave behind, and what becomes of them.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests stop where they fail")]

mod common;

mod budgets;
mod divergence;
mod faults;
mod folder;
mod kills;
mod lanes;
#[cfg(target_os = "linux")]
mod links;
mod load;
mod offload;
#[cfg(unix)]
mod ranks;
mod resume;
#[cfg(feature = "vulkan")]
#[path = "../support/vulkan.rs"]
mod vulkan;
