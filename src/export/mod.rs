//! Adapters for other tools: verified, merged into their base, or rewritten in another tool's layout.
//!
//! | file | owns |
//! |---|---|
//! | `base` | is this the base that the adapter was trained on? |
//! | `combine` | several adapters of one base combined into one |
//! | `delta` | `scaling · B·A`, its norm, and adding it to a weight |
//! | `shards` | weights streamed to disk, one tensor at a time |
//! | `weights` | the values of merged weights |
//! | `folder` | everything in a merged folder besides the weights |
//! | `check` | compares the logits of the merged model with those of adapter on base, one layer in memory at a time |
//! | `merge` | the steps of a merge, in order |
//! | `fidelity` | what a written model keeps of what training gained, by its loss on held-out rows |
//! | `quantize` | a base model saved in 4 bits, in bitsandbytes' layout |
//! | `verify` | checks an adapter folder: files, metadata, and that every module has an effect |
//! | `portable`, `stacked`, `consumer`, `mlx` | adapters for other tools, and what each tool supports |
//! | `gguf` | models and adapters as llama.cpp and Ollama load them |
#![doc = include_str!("after.md")]

pub mod base;
pub mod check;
pub mod combine;
pub mod consumer;
pub mod delta;
pub mod error;
pub mod fidelity;
pub mod folder;
pub mod gguf;
pub mod merge;
pub mod mlx;
pub mod portable;
pub mod quantize;
pub mod shards;
pub mod stacked;
pub mod verify;
pub mod weights;

pub use consumer::Consumer;
pub use error::Error;
