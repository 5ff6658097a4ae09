//! The decoder: what a checkpoint says it is, its weights, its forward pass.

pub mod spec;
