//! What a run folder says of itself beside its numbers: the lock of every input, and the record of how the run went.
//!
//! `recipe.lock` holds the hashes of everything that decides the adapter; whoever trains again compares with it.
//! `run.json` holds what came of the run and where it ran: sessions, data statistics, samples, machine. Neither names
//! a host or a user, and neither holds a value of the environment.

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
/// Larger than any lock or record.
const LARGEST_FILE: u64 = 16 << 20;

/// A lock or record that cannot be made, read or believed.
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
    /// A file is there, and is not what was written.
    #[error("{} cannot be used: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The text of a small file.
fn read(path: &std::path::Path) -> Result<String, Error> {
    let io = || files::Error::io(files::Action::Read, path);
    let bytes = std::fs::metadata(path).map_err(io())?.len();
    if bytes > LARGEST_FILE {
        let reason = format!("it has {bytes} bytes, and at most {LARGEST_FILE} are expected");
        return Err(Error::Damaged { path: path.to_path_buf(), reason });
    }
    Ok(std::fs::read_to_string(path).map_err(io())?)
}
