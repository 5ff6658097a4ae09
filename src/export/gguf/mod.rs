//! GGUF files for llama.cpp, Ollama and others: a model, an adapter merged into one, or an adapter alone.
//!
//! | file | owns |
//! |---|---|
//! | `container` | the layout of the file |
//! | `family` | architecture and hyperparameters |
//! | `names` | tensor names, and how their numbers are arranged |
//! | `positions` | windows and rotary positions |
//! | `rows` | the order of the rows of projections |
//! | `scales` | factors and smooth bounds |
//! | `experts` | the tensors and keys of mixtures of experts |
//! | `mixers` | those of recurrent mixers, short convolutions, embeddings by layer |
//! | `mixture` | which tensor is stored in which type |
//! | `vocabulary`, `pre` | the tokenizer |
//! | `provenance` | metadata keys about the origin |
//! | `model`, `lora` | the two kinds of files, streamed to disk |
//! | `read_back` | a written file as the weights of its model |
//! | `modelfile` | the Modelfile beside them |
//!
//! The block formats themselves are in [`tune_kernels::ggml`].

pub mod container;
mod experts;
pub mod family;
pub mod lora;
mod mixers;
pub mod mixture;
pub mod model;
pub mod modelfile;
pub mod names;
mod positions;
mod pre;
pub mod provenance;
mod read_back;
pub mod rows;
mod scales;
pub mod vocabulary;

pub use lora::Lora;
pub use mixture::FileType;
pub use model::Model;
