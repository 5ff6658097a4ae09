//! Atomic writing: a file or folder is complete or absent.
//!
//! Everything is written beside its destination under a hidden name, flushed to disk, and renamed into place. On an
//! error the hidden file is removed and the destination is untouched. [`sweep`] removes the hidden files of killed
//! processes. Created files and folders have the permissions that the user's umask leaves. Knows nothing of the contents.

pub mod lock;
pub mod safetensors;
pub mod shell;

mod disguise;
mod error;
mod place;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

pub use disguise::Disguise;
pub use error::{Action, Error};

/// Purposes of hidden names: being written, being replaced, being removed.
const NEW: &str = "tmp";
const OLD: &str = "old";
const GONE: &str = "gone";

/// What to do if a folder's destination exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// A non-empty folder is an error.
    Refuse,
    /// The new folder replaces the old one, which is removed.
    Replace,
}

/// Creates or replaces one file with what `write` writes to it.
///
/// # Errors
/// The file cannot be created, written, flushed or renamed, or `write` fails; the destination is then unchanged.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    let temporary = Temporary::beside(path, NEW)?;
    let file = create_new(&temporary.path).map_err(Error::io(Action::Create, path))?;
    let mut buffered = BufWriter::with_capacity(1 << 20, file);
    write(&mut buffered).map_err(Error::io(Action::Write, path))?;
    let file = buffered.into_inner().map_err(|error| Error::io(Action::Write, path)(error.into_error()))?;
    file.sync_all().map_err(Error::io(Action::Write, path))?;
    drop(file);
    fs::rename(&temporary.path, path).map_err(Error::io(Action::Write, path))?;
    temporary.keep();
    sync_folder(parent(path))
}

/// Creates or replaces one file with the given bytes.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_atomically(path, |writer| writer.write_all(bytes))
}

/// Creates a file inside a folder that is being written ([`write_folder_atomically`]), which flushes it with the rest.
///
/// # Errors
/// The file exists, or cannot be created or written.
pub fn write_inside(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    create_inside(path)?.write_all(bytes).map_err(Error::io(Action::Write, path))
}

/// As [`write_inside`]; the caller writes the content.
///
/// # Errors
/// The file exists, or cannot be created.
pub fn create_inside(path: &Path) -> Result<File, Error> {
    create_new(path).map_err(Error::io(Action::Create, path))
}

/// Opens a file for appending, and creates it if it does not exist.
///
/// # Errors
/// The file cannot be opened or created.
pub fn append(path: &Path) -> Result<File, Error> {
    OpenOptions::new().append(true).create(true).open(path).map_err(Error::io(Action::Write, path))
}

/// Appends whole lines to a file, and creates it if it does not exist. A last line that a crash cut off stays a line of
/// its own.
///
/// # Errors
/// The file cannot be read or written.
pub fn append_lines(path: &Path, lines: &str) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let mut file = { options.read(true).append(true).create(true).open(path) }
        .map_err(Error::io(Action::Write, path))?;
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(-1)).is_ok() {
        file.read_exact(&mut last).map_err(Error::io(Action::Read, path))?;
    }
    let start = if last == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{start}{lines}").as_bytes()).map_err(Error::io(Action::Write, path))
}

/// Creates or replaces `to` with the content of `from`, with the permissions of a new file.
///
/// # Errors
/// `from` cannot be read, or as [`write_atomically`].
pub fn copy_file(from: &Path, to: &Path) -> Result<(), Error> {
    let mut source = File::open(from).map_err(Error::io(Action::Read, from))?;
    let about = source.metadata().map_err(Error::io(Action::Read, from))?;
    if !about.is_file() {
        return Err(Error::NotAFile { path: from.to_path_buf() });
    }
    write_atomically(to, |writer| io::copy(&mut source, writer).map(|_| ()))
}

/// Bytes that are free for this user on the disk of an existing folder; `None` if the system does not report it.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        disk.f_bavail.checked_mul(disk.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// Creates a folder and those above it that are missing.
///
/// # Errors
/// A folder cannot be created, or its path exists and is not a folder.
pub fn create_folder(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().recursive(true).create(path) {
        Err(source) if source.kind() == ErrorKind::AlreadyExists => {
            Err(Error::NotAFolder { path: path.to_path_buf() })
        }
        result => result.map_err(Error::io(Action::CreateFolder, path)),
    }
}

/// Creates a folder with the content that `fill` writes into the given path; it is complete or absent.
///
/// The parent folder must exist. `fill` gets an empty folder beside the destination; its content is flushed to disk
/// before the rename. With [`Existing::Replace`] there is an instant between two renames at which neither folder has
/// the name; the old one then still exists beside it. A link is followed. A folder that cannot be replaced (a mounted
/// volume, or one in a folder that cannot be written) is filled file by file once its content is complete.
///
/// # Errors
/// The destination exists (see [`Existing`]), the folder cannot be written, or `fill` fails.
pub fn write_folder_atomically<E: From<Error>>(
    path: &Path,
    existing: Existing,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let path = &place::resolved(path);
    let occupied = occupied(path)?;
    if occupied && existing == Existing::Refuse {
        return Err(Error::NotEmpty { path: path.clone() }.into());
    }
    if place::is_mount_point(path) {
        return place::fill(path, fill);
    }
    let temporary = Temporary::beside(path, NEW)?;
    match DirBuilder::new().create(&temporary.path) {
        Err(error) if place::is_denied(&error) && path.is_dir() => return place::fill(path, fill),
        created => created.map_err(Error::io(Action::CreateFolder, path))?,
    }
    fill(&temporary.path)?;
    sync_tree(&temporary.path)?;
    match occupied {
        false => {
            fs::rename(&temporary.path, path).map_err(|source| match source.kind() {
                ErrorKind::DirectoryNotEmpty => Error::NotEmpty { path: path.clone() },
                _ => Error::io(Action::Write, path)(source),
            })?;
            temporary.keep();
            sync_folder(parent(path))?;
        }
        true => replace_folder(temporary, path)?,
    }
    Ok(())
}

/// A temporary folder beside `path`, on the same file system, removed with its content when dropped.
pub struct Scratch(Temporary);

impl Scratch {
    /// Chooses the folder's name; the folder is created by its first writer.
    ///
    /// # Errors
    /// `path` does not end in a name.
    pub fn beside(path: &Path) -> Result<Self, Error> {
        Ok(Self(Temporary::beside(path, NEW)?))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

/// Removes a folder and its content atomically. A missing folder is not an error.
///
/// # Errors
/// It cannot be renamed or removed.
pub fn remove_folder(path: &Path) -> Result<(), Error> {
    let aside = Temporary::beside(path, GONE)?;
    match fs::rename(path, &aside.path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        result => result.map_err(Error::io(Action::Remove, path))?,
    }
    let gone = aside.keep();
    fs::remove_dir_all(&gone).map_err(Error::io(Action::Remove, &gone))
}

/// Cleans up directly in `folder` after killed processes: removes half-written and half-removed files, and restores a
/// folder that was being replaced. No other process may write to the folder meanwhile.
///
/// # Errors
/// The folder cannot be listed, or an entry cannot be renamed or removed.
pub fn sweep(folder: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(Action::Read, folder)(error)),
    };
    for entry in entries {
        let path = entry.map_err(Error::io(Action::Read, folder))?.path();
        let Some((name, purpose)) = path.file_name().and_then(|name| leftover(name.to_str()?)) else {
            continue;
        };
        let destination = folder.join(name);
        if purpose == OLD && !destination.exists() {
            fs::rename(&path, &destination).map_err(Error::io(Action::Write, &destination))?;
        } else if path.is_dir() {
            fs::remove_dir_all(&path).map_err(Error::io(Action::Remove, &path))?;
        } else {
            fs::remove_file(&path).map_err(Error::io(Action::Remove, &path))?;
        }
    }
    Ok(())
}

/// Whether a file name is one of the hidden names used here.
pub fn is_leftover(name: &str) -> bool {
    leftover(name).is_some()
}

/// Splits a hidden name into the destination's name and the purpose.
fn leftover(name: &str) -> Option<(&str, &str)> {
    let (rest, number) = name.strip_prefix('.')?.rsplit_once('-')?;
    let (rest, process) = rest.rsplit_once('-')?;
    let (name, purpose) = rest.rsplit_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let known = [NEW, OLD, GONE].contains(&purpose) && !name.is_empty();
    (known && is_number(number) && is_number(process)).then_some((name, purpose))
}

/// Replaces a folder by a finished one, and removes the old one.
fn replace_folder(new: Temporary, path: &Path) -> Result<(), Error> {
    let aside = Temporary::beside(path, OLD)?;
    let renamed = fs::rename(path, &aside.path)
        .and_then(|()| fs::rename(&new.path, path).inspect_err(|_| _ = fs::rename(&aside.path, path)));
    if let Err(source) = renamed {
        // If the old folder could not be restored, its content is kept.
        aside.keep();
        return Err(Error::io(Action::Write, path)(source));
    }
    new.keep();
    sync_folder(parent(path))?;
    let old = aside.keep();
    fs::remove_dir_all(&old).map_err(Error::io(Action::Remove, &old))
}

/// Whether `path` exists and is not an empty folder.
fn occupied(path: &Path) -> Result<bool, Error> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            Err(Error::NotAFolder { path: path.to_path_buf() })
        }
        Err(error) => Err(Error::io(Action::Read, path)(error)),
    }
}

/// A hidden path beside a destination, removed when dropped.
struct Temporary {
    path: PathBuf,
    armed: bool,
}

impl Temporary {
    /// A name in the same folder, so that the rename stays on one file system.
    fn beside(path: &Path, purpose: &str) -> Result<Self, Error> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let Some(name) = path.file_name() else {
            return Err(Error::NoName { path: path.to_path_buf() });
        };
        let mut hidden = OsString::from(".");
        hidden.push(name);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        hidden.push(format!(".{purpose}-{}-{number}", process::id()));
        Ok(Self { path: path.with_file_name(hidden), armed: true })
    }

    /// Keeps the file or folder at the path.
    fn keep(mut self) -> PathBuf {
        self.armed = false;
        std::mem::take(&mut self.path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // The original error is the one to report; there may be nothing to remove.
        if self.armed && fs::remove_file(&self.path).is_err() {
            _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// A new file, created under its final name, for logs that are read while they grow.
///
/// # Errors
/// The system's own, `AlreadyExists` among them.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Opens a file for reading and writing, and creates it if it does not exist; its content is kept.
///
/// # Errors
/// The system's own.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// The parent folder of a path.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Flushes everything below a folder, and the folder.
fn sync_tree(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io(Action::Read, folder))? {
        let entry = entry.map_err(Error::io(Action::Read, folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io(Action::Read, &path))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            // Opened for writing, because Windows flushes only such files; the content is unchanged.
            let file =
                OpenOptions::new().append(true).open(&path).map_err(Error::io(Action::Write, &path))?;
            file.sync_all().map_err(Error::io(Action::Write, &path))?;
        }
    }
    sync_folder(folder)
}

/// Makes renames in a folder durable, where the system can.
fn sync_folder(folder: &Path) -> Result<(), Error> {
    if !cfg!(unix) {
        return Ok(());
    }
    let opened = File::open(folder).map_err(Error::io(Action::Read, folder))?;
    match opened.sync_all() {
        // Some network file systems cannot flush a folder; the rename is done in any case.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        result => result.map_err(Error::io(Action::Write, folder)),
    }
}
