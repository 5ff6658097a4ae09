//! From files of examples to micro-batches of token ids. Never names the tensor engine.

pub mod batch;
pub mod corpus;
pub mod error;
pub mod example;
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
