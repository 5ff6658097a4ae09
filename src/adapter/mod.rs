//! Low-rank adapters: which projections get one, their numbers, and the files other tools read.

pub mod projection;
pub mod spec;
pub mod target;
