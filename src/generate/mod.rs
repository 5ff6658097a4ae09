//! Text from a model: decoding token by token with a cache of keys and values.

pub mod decode;
pub mod sampling;
pub mod spec;

pub use decode::{Error, Finish, Generation, generate};
pub use sampling::Sampling;
