//! Frozen weights in the form they are kept in: quantized here, or taken from a checkpoint as it is.

pub mod bitsandbytes;
pub mod error;
pub mod nf4;
pub mod spec;

pub use error::Error;
