//! The decoder layers: frozen weights, forward passes, and backward passes from what a forward pass saved.
//!
//! `parts` says what a layer is made of; here it is computed. Refuses to know where weights come from (`load`).

pub mod adapted;
pub mod attention;
pub mod cache;
pub mod choice;
pub mod delta_net;
mod dispatch;
pub mod gated;
pub mod layer;
pub mod mixture;
mod mixture_inputs;
pub mod norm;
mod output_gate;
pub mod per_layer;
pub mod plain;
pub mod projection;
pub mod reading;
pub mod shared;
pub mod short_conv;
pub(super) mod slots;
pub mod walk;

pub use adapted::Adapted;
pub use cache::{KeyValueCache, cache_room};
pub use layer::{Layer, LayerInputs, LayerTape};
pub use projection::FrozenProjection;
pub use walk::{Guard, Layers, Order, Walk};
