//! What can go wrong when writing to disk; each message names the path and, where one is known, the way out.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A file or folder that could not be written, and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {}", path.display(), reason(source))]
    Io {
        /// What was tried.
        action: Action,
        /// On what: the destination, not the hidden file beside it.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// The destination of a folder holds something.
    #[error("`{}` exists and is not empty; it is left as it is", path.display())]
    NotEmpty {
        /// The destination.
        path: PathBuf,
    },
    /// A folder is wanted where something else stands.
    #[error("`{}` exists and is not a folder; it is left as it is", path.display())]
    NotAFolder {
        /// The destination.
        path: PathBuf,
    },
    /// A file is wanted where something else stands.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A path such as `/` or `..`, beside which nothing can be written.
    #[error("`{}` does not end in a name that can be written to", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// Tensors that cannot stand in one safetensors file.
    #[error("tensor `{tensor}` cannot be written: {reason}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Wraps an operating-system error with what was tried, and on what.
    pub fn io(action: Action, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// Whether space ran out, on the disk or in a quota.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// What was tried when the system refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Opening or reading.
    Read,
    /// Creating a file.
    Create,
    /// Creating a folder.
    CreateFolder,
    /// Writing, flushing or renaming into place.
    Write,
    /// Removing what was replaced.
    Remove,
    /// Taking the lock of a folder.
    Lock,
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Read => "read",
            Self::Create => "create",
            Self::CreateFolder => "create the folder",
            Self::Write => "write",
            Self::Remove => "remove",
            Self::Lock => "lock",
        })
    }
}

/// The cause in words a person can act on.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::StorageFull => {
            "the disk is full; free some space, or choose a place on another disk".into()
        }
        ErrorKind::QuotaExceeded => {
            "your disk quota is used up; free some space, or choose another place".into()
        }
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only; choose another place".into(),
        ErrorKind::PermissionDenied => "permission denied".into(),
        ErrorKind::NotFound => "there is no such file or folder".into(),
        _ => error.to_string(),
    }
}
