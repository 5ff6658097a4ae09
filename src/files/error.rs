//! Errors of writing to disk; each message names the path and, if there is one, the remedy.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::units::Bytes;

/// Why a file or folder could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the operating system.
    #[error("cannot {action} `{}`: {}", path.display(), reason(source))]
    Io {
        /// The attempted action.
        action: Action,
        /// The destination, not the hidden file beside it.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Less space is free than will be written.
    #[error(
        "`{}` takes {needed}, and {free} are free on its disk; free some space, or choose a folder on another disk",
        path.display()
    )]
    NoRoom {
        /// The destination.
        path: PathBuf,
        /// What will be written.
        needed: Bytes,
        /// What is free.
        free: Bytes,
    },
    /// The destination of a folder is not empty.
    #[error("`{}` exists and is not empty; it is left unchanged", path.display())]
    NotEmpty {
        /// The destination.
        path: PathBuf,
    },
    /// The destination of a folder is not a folder.
    #[error("`{}` exists and is not a folder; it is left unchanged", path.display())]
    NotAFolder {
        /// The destination.
        path: PathBuf,
    },
    /// The path of a file is not a regular file.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A path such as `/` or `..`, beside which nothing can be written.
    #[error("`{}` does not end in the name of a file or folder", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// Tensors that a safetensors file cannot contain.
    #[error("tensor `{tensor}` cannot be written: {reason}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// The problem.
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
            Self::NoRoom { .. } => true,
            _ => false,
        }
    }
}

/// An action of the operating system.
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

/// The cause, with a remedy.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::StorageFull => {
            "the disk is full; free some space, or choose a folder on another disk".into()
        }
        ErrorKind::QuotaExceeded => {
            "the disk quota is used up; free some space, or choose another folder".into()
        }
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only; choose another folder".into(),
        ErrorKind::PermissionDenied => "permission denied".into(),
        ErrorKind::NotFound => "no such file or folder".into(),
        _ => error.to_string(),
    }
}
