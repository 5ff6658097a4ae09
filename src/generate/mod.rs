//! Text from a model: what it answers before training, and what after.

pub mod spec;
