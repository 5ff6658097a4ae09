//! Why an adapter could not be merged, exported or trusted. Each message says what to do about it.

use std::path::PathBuf;

use crate::{adapter, assets, data, files, model};

/// What stopped a merge, an export or a check.
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
    /// Tokenizer, template or rows are at fault.
    #[error(transparent)]
    Data(#[from] data::error::Error),
    /// The base differs from the one the adapter was trained on.
    #[error("this is not the base that the adapter in `{}` was trained on:{}", adapter.display(), listed(differences))]
    WrongBase {
        /// The adapter's folder.
        adapter: PathBuf,
        /// One line each.
        differences: Vec<String>,
        /// Whether sizes and family fit, so that the user may insist.
        overridable: bool,
    },
    /// Adapters to be combined belong to different bases.
    #[error("adapters of different bases have no sum:{}", listed(differences))]
    DifferentBases {
        /// One line each.
        differences: Vec<String>,
    },
    /// A choice that this base does not have.
    #[error("{message}")]
    Choice {
        /// What was asked, why it cannot be, and what to do.
        message: String,
    },
    /// A merged weight that its dtype cannot hold.
    #[error(
        "tensor `{tensor}` holds {value} at element {element} after merging, which {dtype} cannot hold; write another dtype (`--dtype f32`, `--dtype bf16`)"
    )]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Position in the flattened tensor.
        element: usize,
        /// The number.
        value: f32,
        /// The dtype that was to be written.
        dtype: &'static str,
    },
    /// The merged model does not compute what the adapter on its base does.
    #[error(
        "the merged model does not compute what the adapter on its base does, so nothing was written: {message}"
    )]
    Diverged {
        /// The numbers, and what to do.
        message: String,
    },
    /// What a consumer cannot be given.
    #[error("{consumer} cannot load this adapter, in whatever form: {reason}; merge instead: `tune merge {}`", adapter.display())]
    NotPortable {
        /// The consumer.
        consumer: &'static str,
        /// What stands in the way.
        reason: String,
        /// The adapter's folder.
        adapter: PathBuf,
    },
    /// Something that a GGUF file, or llama.cpp reading one, has no place for.
    #[error("{subject} cannot be carried into a GGUF file: {reason}")]
    NotInGguf {
        /// What it is.
        subject: String,
        /// Why not, and what is known.
        reason: String,
    },
    /// A number that a block format cannot hold.
    #[error(
        "tensor `{tensor}` holds {value} in the block at element {element}, which {kind} cannot hold; choose another type (`--gguf bf16`, `--gguf f32`)"
    )]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// First position of the block in the flattened tensor, its rows in the order of the file.
        element: usize,
        /// The number of largest magnitude in it.
        value: f32,
        /// The block format.
        kind: &'static str,
    },
    /// The work was asked to stop; nothing was written.
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
