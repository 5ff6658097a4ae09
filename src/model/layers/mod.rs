//! One decoder layer: pre-norm attention and a gated feed-forward block, each added to the hidden state; forward, and
//! backward from what the forward kept.
//!
//! Refuses to know the loop over layers (`train`) and where weights come from (`load`).

pub mod adapted;
pub mod attention;
pub mod cache;
pub mod decoder_layer;
pub mod feed_forward;
pub mod projection;

pub use adapted::Adapted;
pub use cache::{KeyValueCache, cache_room};
pub use decoder_layer::{DecoderLayer, LayerInputs, LayerTape};
pub use projection::FrozenProjection;
