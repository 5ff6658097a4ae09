//! A lock file that marks a folder as in use. The system releases the lock when the process ends, for whatever reason.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{Action, Error};

/// Losing the file this often in a row has another cause than a run that ends.
const ATTEMPTS: usize = 100;

/// A lock held by this process. Dropping it removes the file.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// Holds the lock; closed after the removal of the file.
    _file: File,
    effective: bool,
}

impl Lock {
    /// Takes the lock at `path`; `None` if another process, or another part of this one, has it.
    ///
    /// # Errors
    /// The file cannot be created or locked.
    pub fn try_take(path: &Path) -> Result<Option<Self>, Error> {
        for _ in 0..ATTEMPTS {
            let file = super::open_or_create(path).map_err(Error::io(Action::Create, path))?;
            let effective = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => false,
                Err(TryLockError::Error(error)) => return Err(Error::io(Action::Lock, path)(error)),
            };
            // Between opening and locking, the holder may have removed the file: a lock on a nameless file has no
            // effect.
            if is_still_there(&file, path).map_err(Error::io(Action::Lock, path))? {
                return Ok(Some(Self { path: path.to_path_buf(), _file: file, effective }));
            }
        }
        Ok(None)
    }

    /// Whether the lock has an effect. Some network file systems do not support locks.
    pub fn is_effective(&self) -> bool {
        self.effective
    }
}

/// Whether a process holds the lock at `path`. Creates nothing.
pub fn is_held(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    // Shared, so that two who look do not see each other.
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while still locked. A leftover file is unlocked and harmless.
        _ = fs::remove_file(&self.path);
    }
}

/// Whether `path` still refers to the open file.
#[cfg(unix)]
fn is_still_there(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let identity = |about: fs::Metadata| (about.dev(), about.ino());
    match fs::metadata(path) {
        Ok(about) => Ok(identity(about) == identity(file.metadata()?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// An open file cannot be removed here.
#[cfg(not(unix))]
fn is_still_there(_: &File, _: &Path) -> io::Result<bool> {
    Ok(true)
}
