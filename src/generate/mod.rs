//! Text from a model: decoding token by token with a cache of keys and values.
#![doc = include_str!("talking.md")]

pub mod answer;
pub mod decode;
pub mod memory;
pub mod sampling;
pub mod spec;
pub mod text;
pub mod together;

pub use answer::{Answer, Ending};
pub use decode::{Error, Finish, Generation, Session, generate};
pub use sampling::Sampling;
