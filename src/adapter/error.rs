//! Errors of an adapter's values and files; each message names the file, key or tensor.

use std::path::{Path, PathBuf};

use crate::{assets, files};

/// An adapter that cannot be used, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the adapter folder could not be read, or is not valid safetensors.
    #[error(transparent)]
    Read(#[from] assets::Error),
    /// The adapter folder could not be written.
    #[error(transparent)]
    Write(#[from] files::Error),
    /// The folder is not an adapter.
    #[error("`{}` is not a PEFT adapter folder: {reason}", folder.display())]
    NotAnAdapter {
        /// The folder.
        folder: PathBuf,
        /// What is missing, and what to do.
        reason: String,
    },
    /// The adapter uses features that are not supported.
    #[error("the adapter in `{}` cannot be used:{}", folder.display(), listed(problems))]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// One line each.
        problems: Vec<String>,
    },
    /// The adapter is not the one that the recipe describes.
    #[error("the adapter in `{}` differs from the recipe:{}", folder.display(), listed(differences))]
    Differs {
        /// The folder.
        folder: PathBuf,
        /// One line each.
        differences: Vec<String>,
    },
    /// A trained number that is infinite or NaN.
    #[error("tensor `{tensor}` of the adapter holds {value} at element {element}; nothing was written")]
    NotFinite {
        /// The tensor's key.
        tensor: String,
        /// Position in the flattened tensor.
        element: usize,
        /// The number.
        value: f32,
    },
    /// A tensor's values do not fill its shape.
    #[error("tensor `{tensor}` of the adapter has shape {shape:?}, but {found} values were given for it")]
    WrongLength {
        /// The tensor's key.
        tensor: String,
        /// Its shape.
        shape: [usize; 2],
        /// The number of values.
        found: usize,
    },
    /// Another number of tensors than the adapter has.
    #[error("the adapter has {expected} tensors, but {found} were given")]
    WrongCount {
        /// A and B of every target.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// Reading the values from the device failed.
    #[error("tensor `{tensor}` of the adapter could not be read from the device: {reason}")]
    Device {
        /// The tensor's key.
        tensor: String,
        /// The backend's own words.
        reason: String,
    },
}

impl Error {
    pub(super) fn unusable(folder: &Path, problems: Vec<String>) -> Self {
        Self::Unusable { folder: folder.to_path_buf(), problems }
    }
}

/// One line for each entry.
fn listed(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  - {line}")).collect()
}
