//! What can be wrong with a model folder. Every message names the file, what was expected and the way out.

use std::io;
use std::path::{Path, PathBuf};

/// A model folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that has to be there is not.
    #[error("{} has no {file}: {help}", folder.display())]
    MissingFile {
        /// The model folder.
        folder: PathBuf,
        /// The file's name in it.
        file: String,
        /// What to do.
        help: String,
    },
    /// Something other than a regular file stands under a file's name.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A JSON file larger than any real one.
    #[error("{} holds {bytes} bytes, more than the {limit} such a file may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file that is not JSON, or JSON of another shape than its name promises.
    #[error("{}: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A safetensors file whose header does not describe its content.
    #[error("{} is not a valid safetensors file: {message}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The file is shorter than when it was opened.
    #[error("{} ended {missing} bytes early while tensor `{tensor}` was read: it changed since it was opened", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The tensor being read.
        tensor: String,
        /// Bytes that were not there.
        missing: u64,
    },
    /// No such tensor.
    #[error("{} holds no tensor `{tensor}`", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor whose numbers cannot be read as floats.
    #[error("tensor `{tensor}` in {} is {dtype}; F32, F16 and BF16 can be read", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its dtype.
        dtype: String,
    },
    /// A number that has no place in a weight, or in the dtype it is wanted in.
    #[error("tensor `{tensor}` in {} holds {value} at element {element}, which {reason}", path.display())]
    BadNumber {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Position in the flattened tensor.
        element: usize,
        /// The number.
        value: f32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An index that contradicts its shards.
    #[error("{}: {message}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// The contradiction.
        message: String,
    },
    /// The base of a recipe was not found.
    #[error("{message}")]
    BaseNotFound {
        /// What was looked for, where, and what to do.
        message: String,
    },
}

impl Error {
    /// Wraps an operating-system error with the path it concerns.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}
