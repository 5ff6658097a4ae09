//! Frozen weights in the form they are kept in.

pub mod spec;
