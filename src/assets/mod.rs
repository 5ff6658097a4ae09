//! Model folders on disk, checked for completeness before anything is read from them.
//!
//! Knows the Hugging Face layouts: config.json, safetensors files (one, or shards with an index), tokenizer
//! files, the local hub cache. Knows no meaning of a tensor, no tokenizer and no tensor
//! engine.

pub mod dataset;
pub mod error;
mod experts;
pub mod folder;
mod fp8;
pub mod hub;
pub mod json;
pub mod safetensors;
pub mod weights;

pub use error::Error;
pub use experts::renamed as experts_renamed;
pub use folder::{FileDigest, ModelDir};
pub use hub::{Base, resolve_base};
pub use safetensors::{Dtype, Float, SafetensorsFile, TensorInfo};
pub use weights::WeightFiles;
