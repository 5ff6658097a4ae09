//! One decoder layer: pre-norm attention and a gated feed-forward block, each added to the hidden state.
//!
//! Weights lie on the backend without autodiff; a forward pass runs there, or under autodiff on top of it, with
//! the same code. Refuses to know the loop over layers (`train`) and where weights come from (`load`).

pub mod attention;
pub mod cache;
pub mod decoder_layer;
pub mod feed_forward;
pub mod projection;

pub use cache::KeyValueCache;
pub use decoder_layer::{DecoderLayer, LayerInputs};
pub use projection::FrozenProjection;
