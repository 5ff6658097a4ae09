//! The decoder: what a checkpoint says it is, its weights, its forward pass.

mod config;
pub mod decoder;
pub mod decoder_spec;
pub mod error;
pub mod family;
pub mod layers;
pub mod load;
pub mod random;
pub mod rotary;
pub mod shapes;
pub mod spec;
pub mod tensors;

pub use decoder::Decoder;
pub use decoder_spec::{Biases, DecoderSpec, FloatDtype, TensorNames};
pub use error::Error;
