//! Frozen weights as they are stored: quantized here, or read from a checkpoint that is already quantized.

pub mod bitsandbytes;
pub mod error;
pub mod mxfp4;
pub mod nf4;
pub mod spec;
pub mod stored;

pub use error::Error;
