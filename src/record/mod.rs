//! The metadata of a run folder: the lock of all inputs, and the record of the run.
//!
//! `recipe.lock` contains the hashes of everything that determines the adapter; `tune reproduce` compares with it.
//! `run.json` contains sessions, data statistics, samples and machine of the run. Neither contains a host name, a user name
//! or an environment variable.

mod journal;
mod lock;
mod machine;

pub use journal::{End, Journal, Record, SampleRecord, Session, Status};
pub use lock::{Difference, Inputs, Lock, LockedFile};
pub use machine::Machine;

use std::path::PathBuf;

use crate::{assets, data, files};

/// Name of the lock in the run folder.
pub const LOCK_FILE: &str = "recipe.lock";
/// Name of the record in the run folder.
pub const RECORD_FILE: &str = "run.json";
/// Largest lock or record read, in bytes.
const LARGEST_FILE: u64 = 16 << 20;

/// Why a lock or record cannot be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the base or of an adapter cannot be hashed.
    #[error(transparent)]
    Assets(#[from] assets::Error),
    /// A dataset cannot be hashed.
    #[error(transparent)]
    Data(#[from] data::source::Error),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A file exists, but its content is invalid.
    #[error("{} is not valid: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
}

/// The text of a small file.
fn read(path: &std::path::Path) -> Result<String, Error> {
    let io = || files::Error::io(files::Action::Read, path);
    let bytes = std::fs::metadata(path).map_err(io())?.len();
    if bytes > LARGEST_FILE {
        let reason = format!("it has {bytes} bytes; the limit is {LARGEST_FILE}");
        return Err(Error::Damaged { path: path.to_path_buf(), reason });
    }
    Ok(std::fs::read_to_string(path).map_err(io())?)
}
