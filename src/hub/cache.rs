//! One repository in the Hugging Face cache, in huggingface_hub's layout, so that both share files:
//!
//! ```text
//! models--org--name/blobs/<etag>                   the content, once
//! models--org--name/snapshots/<commit>/<path>      a link to it
//! models--org--name/refs/<revision>                the commit
//! .locks/models--org--name/<etag>.lock             held while a blob is written
//! ```

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::Error;
use crate::files::{self, Action};

/// A repository's folder.
pub(super) struct Repository {
    root: PathBuf,
    locks: PathBuf,
}

impl Repository {
    /// Creates what is missing of the layout.
    /// `kind` is `models` or `datasets`.
    pub(super) fn open(hub_cache: &Path, kind: &str, id: &str) -> Result<Self, Error> {
        let name = format!("{kind}--{}", id.replace('/', "--"));
        let (root, locks) = (hub_cache.join(&name), hub_cache.join(".locks").join(&name));
        for folder in [root.join("blobs"), root.join("snapshots"), root.join("refs"), locks.clone()] {
            files::create_folder(&folder)?;
        }
        Ok(Self { root, locks })
    }

    /// The path of a complete blob.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The path of an incomplete blob.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The folder of one commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Waits for the exclusive right to write a blob; the lock is released with the file.
    pub(super) fn lock(&self, etag: &str, stop: &AtomicBool) -> Result<File, Error> {
        let path = self.locks.join(format!("{etag}.lock"));
        let file = files::open_or_create(&path).map_err(files::Error::io(Action::Create, &path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
                // Without locks, two simultaneous downloads still end in a verified file.
                Err(TryLockError::Error(_)) => return Ok(file),
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Adds a blob to a snapshot: as a relative link, or as a copy where links are not supported.
    pub(super) fn link(&self, commit: &str, path: &str, etag: &str) -> Result<(), Error> {
        let name = self.snapshot(commit).join(path);
        let blob = self.blob(etag);
        if let Some(folder) = name.parent() {
            files::create_folder(folder)?;
        }
        let depth = path.split('/').count() + 1;
        let mut relative: PathBuf = std::iter::repeat_n("..", depth).collect();
        relative.push("blobs");
        relative.push(etag);
        if fs::read_link(&name).is_ok_and(|known| known == relative) {
            return Ok(());
        }
        match fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(files::Error::io(Action::Remove, &name)(error).into());
            }
            _ => {}
        }
        match symlink(&relative, &name) {
            Ok(()) => Ok(()),
            Err(_) => Ok(files::copy_file(&blob, &name)?),
        }
    }

    /// Records the commit of a branch or tag.
    pub(super) fn set_ref(&self, revision: &str, commit: &str) -> Result<(), Error> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        if let Some(folder) = path.parent() {
            files::create_folder(folder)?;
        }
        Ok(files::write_bytes(&path, commit.as_bytes())?)
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
