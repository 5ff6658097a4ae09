//! From files of examples to micro-batches of token ids. Never names the tensor engine.

pub mod example;
pub mod order;
mod schema;
pub mod source;
pub mod spec;
