//! Errors of model folders. Every message names the file, what was expected, and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use crate::files::Disguise;

/// Why a model folder is unusable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the operating system.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A required file is missing.
    #[error("{} has no {file}: {help}", folder.display())]
    MissingFile {
        /// The model folder.
        folder: PathBuf,
        /// The file's name in it.
        file: String,
        /// The remedy.
        help: String,
    },
    /// The path of a file is not a regular file.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A JSON file is implausibly large.
    #[error("{} has {bytes} bytes; the limit for such a file is {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A folder with the weights of a model and of an adapter.
    #[error(
        "{} holds the weights of a model and an adapter, and it is not clear which of them is meant; move \
         adapter_config.json and the adapter's weights to a folder of their own",
        folder.display()
    )]
    ModelAndAdapter {
        /// The folder.
        folder: PathBuf,
    },
    /// A file that is something else than its name says.
    #[error("{} {disguise}", path.display())]
    Disguised {
        /// The file.
        path: PathBuf,
        /// What it is.
        disguise: Disguise,
    },
    /// A file is not JSON, or not of the expected structure.
    #[error("{}: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A safetensors file has an invalid header.
    #[error("{} is not a valid safetensors file: {message}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The file is shorter than when it was opened.
    #[error("{} ended {missing} bytes too early while tensor `{tensor}` was read: the file changed after it was opened", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The tensor being read.
        tensor: String,
        /// Missing bytes.
        missing: u64,
    },
    /// No such tensor.
    #[error("{} contains no tensor `{tensor}`", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor whose dtype is not a supported float type.
    #[error("tensor `{tensor}` in {} is {dtype}; supported are F32, F16 and BF16", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its dtype.
        dtype: String,
    },
    /// A value that is not finite, or outside the range of the requested dtype.
    #[error("tensor `{tensor}` in {} is {value} at element {element}, which {reason}", path.display())]
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
    /// An index contradicts its shards.
    #[error("{}: {message}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// The contradiction.
        message: String,
    },
    /// The base of a recipe was not found.
    #[error("{message}{}", fetched(fetch.as_deref()))]
    BaseNotFound {
        /// What was searched where.
        message: String,
        /// The command that downloads it.
        fetch: Option<String>,
    },
}

/// The remedy in a sentence.
fn fetched(fetch: Option<&str>) -> String {
    fetch.map_or_else(String::new, |fetch| format!("; download it with `{fetch}`, or name a folder"))
}

impl Error {
    /// Wraps an operating-system error with the path it concerns.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}
