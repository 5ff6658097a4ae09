//! The program as a CI job meets it: events, annotations, exit codes, a run folder that explains itself.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper outside the test functions may fail the test"
)]

mod ci_job;
mod commands;
mod devices;
mod earlier;
mod envelope;
mod events;
mod exit_codes;
mod faults;
mod fixture;
mod folder;
mod reproduce;
#[path = "../hub/server.rs"]
#[expect(dead_code, reason = "of the hub's troubles none is wanted here")]
mod server;
#[cfg(target_os = "linux")]
mod surroundings;
mod templates;
#[cfg(feature = "vulkan")]
#[path = "../support/vulkan.rs"]
mod vulkan;
