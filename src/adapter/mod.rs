//! Low-rank adapters: which projections get one, their numbers, and the files other tools read.

pub mod dora;
pub mod error;
pub mod lora;
pub mod parameter;
pub mod peft;
pub mod projection;
pub mod saved;
pub mod spec;
pub mod table;
pub mod target;

pub use error::Error;
