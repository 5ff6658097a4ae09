//! An adapter on its way to other tools: proven whole, folded into its base, or rewritten for one of them.
//!
//! | file | owns |
//! |---|---|
//! | `base` | is this the base that the adapter was trained on? |
//! | `combine` | several adapters of one base as one |
//! | `delta` | `scaling · B·A`, its size and its sum with a weight |
//! | `shards` | weights streamed to disk, one tensor at a time |
//! | `weights` | the numbers of merged weights |
//! | `folder` | everything in a merged folder that is not a weight |
//! | `check` | logits of adapter-on-base beside those of the merged model, one layer in memory at a time |
//! | `merge` | the order of these |
//! | `quantize` | a base written once in 4 bits, as bitsandbytes does |
//! | `verify` | what an adapter says of itself, and whether every module of it does something |
//! | `portable`, `consumer`, `mlx` | adapters for other tools, and what each of those reads |
//! | `gguf` | models and adapters as llama.cpp and Ollama load them |

pub mod base;
pub mod check;
pub mod combine;
pub mod consumer;
pub mod delta;
pub mod error;
pub mod folder;
pub mod gguf;
pub mod merge;
pub mod mlx;
pub mod portable;
pub mod quantize;
pub mod shards;
pub mod verify;
pub mod weights;

pub use consumer::Consumer;
pub use error::Error;
