//! Errors of merging, exporting and verifying. Each message says what to do about it.

use std::path::PathBuf;

use crate::{adapter, assets, data, files, model};

/// Why a merge, an export or a check failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The adapter cannot be used.
    #[error(transparent)]
    Adapter(#[from] adapter::Error),
    /// The base cannot be used.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The destination cannot be written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The tokenizer, the chat template or a row is invalid.
    #[error(transparent)]
    Data(#[from] data::error::Error),
    /// The base differs from the one the adapter was trained on.
    #[error("the adapter in `{}` was trained on another base model:{}", adapter.display(), listed(differences))]
    WrongBase {
        /// The adapter's folder.
        adapter: PathBuf,
        /// One line each.
        differences: Vec<String>,
        /// Whether sizes and family fit, so that `--allow-other-base` may override the difference.
        overridable: bool,
    },
    /// Adapters to be combined belong to different bases.
    #[error("cannot combine adapters trained on different base models:{}", listed(differences))]
    DifferentBases {
        /// One line each.
        differences: Vec<String>,
    },
    /// An option that this base or adapter does not support.
    #[error("{message}")]
    Choice {
        /// The option, why it does not apply, and what to do.
        message: String,
    },
    /// A merged weight is outside the range of its dtype.
    #[error(
        "tensor `{tensor}` is {value} at element {element} after merging, outside the range of {dtype}; choose another dtype (`--dtype f32` or `--dtype bf16`)"
    )]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Position in the flattened tensor.
        element: usize,
        /// The value there.
        value: f32,
        /// The dtype that was to be written.
        dtype: &'static str,
    },
    /// The logits of the merged model differ from those of the adapter on its base.
    #[error("the merged model does not match the adapter on its base, so nothing was written: {message}")]
    Diverged {
        /// The difference, and what to do.
        message: String,
    },
    /// The consumer does not support this adapter in any form.
    #[error("{consumer} cannot load this adapter in any form: {reason}; merge it instead: `tune merge {}`", adapter.display())]
    NotPortable {
        /// The consumer.
        consumer: &'static str,
        /// The feature that it lacks.
        reason: String,
        /// The adapter's folder.
        adapter: PathBuf,
    },
    /// Something that GGUF files or llama.cpp do not support.
    #[error("{subject} cannot be exported to GGUF: {reason}")]
    NotInGguf {
        /// The model, tokenizer or part of it.
        subject: String,
        /// Why, and what is supported.
        reason: String,
    },
    /// A value is outside the range of a block format.
    #[error(
        "tensor `{tensor}` contains {value} in the block at element {element}, outside the range of {kind}; choose another type (`--gguf bf16` or `--gguf f32`)"
    )]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// First position of the block in the flattened tensor, rows in the file's order.
        element: usize,
        /// The value of largest magnitude in the block.
        value: f32,
        /// The block format.
        kind: &'static str,
    },
    /// A signal stopped the work; nothing was written.
    #[error("stopped; nothing was written")]
    Stopped,
}

impl From<assets::Error> for Error {
    fn from(error: assets::Error) -> Self {
        Self::Model(error.into())
    }
}

impl From<crate::quant::Error> for Error {
    fn from(error: crate::quant::Error) -> Self {
        Self::Model(error.into())
    }
}

fn listed(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  - {line}")).collect()
}
