//! Why a checkpoint cannot be run. Every message names the key or tensor, what was expected and the remedy.

use crate::{assets, quant};

/// A model that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model folder is at fault.
    #[error(transparent)]
    Assets(#[from] assets::Error),
    /// A quantized tensor is at fault.
    #[error(transparent)]
    Quant(#[from] quant::Error),
    /// An architecture that is not implemented.
    #[error(
        "config.json describes {found}, which is not supported; most like it is {nearest}; supported are {supported}"
    )]
    UnsupportedArchitecture {
        /// What it says it is.
        found: String,
        /// The supported family whose name is most like it.
        nearest: String,
        /// What can be used instead.
        supported: String,
    },
    /// A configuration that names no architecture.
    #[error(
        "config.json has neither `model_type` nor `architectures`, so the kind of model is unknown; is it the config.json of \
         a model, and whole?"
    )]
    NoArchitecture,
    /// A key of config.json has a value that cannot be right, or that means something not implemented.
    #[error("config.json: `{key}` {message}")]
    Config {
        /// The key; nested keys joined by a dot.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// Keys of config.json whose meaning is not known.
    #[error(
        "config.json has keys that are not understood and might change the maths: {}. If they do not matter for this \
         model, leave them out: `ignore_config_keys = {paths:?}` in `[model]`",
        keys.join(", ")
    )]
    UnknownKeys {
        /// `key = value` of each.
        keys: Vec<String>,
        /// The keys alone.
        paths: Vec<String>,
    },
    /// A key to leave out that config.json does not have.
    #[error("`ignore_config_keys` names `{key}`, which config.json does not have")]
    NoSuchKey {
        /// The key.
        key: String,
    },
    /// The tensors of the checkpoint are not those of the model that config.json describes.
    #[error("the weights in {folder} do not fit config.json: {}", problems.join("; "))]
    Tensors {
        /// The model folder.
        folder: String,
        /// Every mismatch, the first ones in full.
        problems: Vec<String>,
    },
    /// A token id the model has no embedding for.
    #[error("token id {id} at position {position} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Its place in the sequence.
        position: usize,
        /// The vocabulary.
        vocab_size: usize,
    },
    /// Position ids beyond the end of their document.
    #[error("position id {position} is outside a batch of {limit} tokens")]
    PositionOutOfRange {
        /// The position id.
        position: u32,
        /// The number of keys.
        limit: usize,
    },
    /// Adapters made for another model.
    #[error("adapters for {adapters} layers do not fit a model of {layers} layers")]
    AdapterCount {
        /// Entries given.
        adapters: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// An empty batch.
    #[error("the batch has no tokens")]
    EmptyBatch,
    /// The thread that reads layers ahead is missing.
    #[error("layers cannot be read ahead: {message}")]
    LayerReader {
        /// The reason.
        message: String,
    },
    /// The device failed before a layer could take the place of another.
    #[error("the device failed before layer {layer} could be placed: {message}")]
    Device {
        /// The layer that was to come.
        layer: usize,
        /// The error of its runtime.
        message: String,
    },
    /// The dtype of the recipe does not hold the model's activations.
    #[error(
        "activations of {family} models overflow f16: choose `compute_dtype = \"bf16\"`, \"f32\" or \"auto\""
    )]
    OverflowsF16 {
        /// The family.
        family: &'static str,
    },
    /// A layer's input did not come back from host memory.
    #[error("the input of a layer did not come back from host memory: {message}")]
    SavedInput {
        /// The error of the device's runtime.
        message: String,
    },
    /// The device cannot compute in the dtype of the recipe.
    #[error("the device cannot compute in {dtype}: choose `compute_dtype = \"f32\"` or \"auto\"")]
    UnsupportedDtype {
        /// The dtype.
        dtype: &'static str,
    },
}

impl Error {
    /// A key of config.json and what is wrong with it.
    pub(super) fn config(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config { key: key.into(), message: message.into() }
    }
}
