//! The decoder: what a checkpoint says it is, its weights, its forward pass.

mod absent;
mod config;
pub mod decoder;
pub mod decoder_spec;
pub mod dtype;
pub mod error;
pub mod family;
pub mod fetch;
pub mod gguf_spec;
pub mod kept;
pub mod layers;
pub mod load;
pub mod parts;
mod per_layer;
pub mod random;
pub mod rotary;
pub mod rotations;
pub mod shapes;
pub mod spec;
mod stored;
mod table;
pub mod tensors;

pub use decoder::Decoder;
pub use decoder_spec::DecoderSpec;
pub use dtype::FloatDtype;
pub use error::Error;
