//! From files of examples to micro-batches of token ids. Never names the tensor engine.
#![doc = include_str!("reading.md")]

pub mod batch;
pub mod corpus;
pub mod error;
pub mod example;
pub mod guess;
pub mod inspect;
pub(crate) mod json;
pub mod order;
pub mod pack;
pub mod prefetch;
pub mod roles;
pub mod schema;
pub mod sequence;
pub mod source;
pub mod spec;
pub mod survey;
pub mod template;
mod token_store;
pub mod tokenize;
