//! Reading a range of a file by its position, without a shared cursor. Knows nothing of what the bytes mean.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arrow_buffer::{Buffer, MutableBuffer};

use super::fault::Fault;

/// The most that is read in one piece: what a single block may take in memory.
pub(super) const LARGEST_READ: u64 = 1 << 30;

/// Memory that a block may take whatever its file's length: repetitive data compresses well.
const ANY_BLOCK: u64 = 64 << 20;
/// Bytes in memory that one byte of the file accounts for at most.
const PER_BYTE: u64 = 64;
/// Rows, or values of a column, that one byte of the file accounts for at most: a constant value takes no space.
const ROWS_PER_BYTE: u64 = 1024;

/// A file of a dataset. It is opened again for each block: a dataset may have more files than a process may hold
/// open.
#[derive(Clone, Debug)]
pub(super) struct Location {
    path: Arc<Path>,
    len: u64,
    /// `None` where the file system does not keep it.
    modified: Option<SystemTime>,
}

impl Location {
    pub(super) fn new(path: Arc<Path>) -> Result<Location, Fault> {
        let metadata = std::fs::metadata(&path)?;
        if !metadata.is_file() {
            return Err(Fault::new("is not a file"));
        }
        Ok(Location { path, len: metadata.len(), modified: metadata.modified().ok() })
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The most bytes that one block of the file may become in memory.
    pub(super) fn largest_block(&self) -> u64 {
        self.len.saturating_mul(PER_BYTE).saturating_add(ANY_BLOCK).min(LARGEST_READ)
    }

    /// Refuses a number of rows that no file of this length has: each takes memory.
    pub(super) fn require_rows(&self, rows: u64) -> Result<(), Fault> {
        if rows > self.len.saturating_mul(ROWS_PER_BYTE) {
            return Err(Fault::new(format!("corrupt: its header claims {rows} rows, in {} bytes", self.len)));
        }
        Ok(())
    }

    /// Refuses a number of values in one column that no file of this length has: each takes time.
    pub(super) fn require_values(&self, values: u64, column: &str) -> Result<(), Fault> {
        if values > self.len.saturating_mul(ROWS_PER_BYTE) {
            return Err(Fault::new(format!(
                "corrupt: its header claims {values} values in column `{column}`, in {} bytes",
                self.len
            )));
        }
        Ok(())
    }

    /// Opens the file if its length and time of change are as when the dataset was opened.
    pub(super) fn open(&self) -> Result<File, Fault> {
        let file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        if metadata.len() != self.len {
            let (now, then) = (metadata.len(), self.len);
            return Err(Fault::new(format!(
                "has changed since it was opened: it had {then} bytes and has {now} now"
            )));
        }
        if metadata.modified().ok() != self.modified {
            return Err(Fault::new("has been written to since it was opened"));
        }
        Ok(file)
    }

    /// The file under that name, even if it has changed since.
    pub(super) fn open_as_it_is(&self) -> Result<File, Fault> {
        Ok(File::open(&self.path)?)
    }

    /// The bytes `start..start + len`. Checks the range before it takes memory for it.
    pub(super) fn read(&self, file: &File, start: u64, len: u64) -> Result<Buffer, Fault> {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Fault::new(format!(
                "truncated or corrupt: {len} bytes expected at offset {start}, but the file ends at {}",
                self.len
            )));
        }
        let size = usize::try_from(len)
            .ok()
            .filter(|_| len <= LARGEST_READ)
            .ok_or_else(|| Fault::new(format!("a block of {len} bytes is too large to read in one piece")))?;
        let mut buffer = MutableBuffer::from_len_zeroed(size);
        read_exact_at(file, buffer.as_slice_mut(), start)?;
        Ok(buffer.into())
    }
}

fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match read_some_at(file, buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(unix)]
fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_before_memory_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"0123456789").unwrap();
        let location = Location::new(path.as_path().into()).unwrap();
        let file = location.open().unwrap();
        assert_eq!(location.read(&file, 3, 4).unwrap().as_slice(), b"3456");
        assert!(location.read(&file, 10, 0).unwrap().is_empty());
        for (start, len) in [(10, 1), (0, u64::MAX), (u64::MAX, 1), (3, 8)] {
            let fault = location.read(&file, start, len).unwrap_err().to_string();
            assert!(fault.starts_with("truncated or corrupt"), "{fault}");
        }
        let touched = SystemTime::now() + std::time::Duration::from_secs(5);
        File::options().write(true).open(&path).unwrap().set_modified(touched).unwrap();
        assert!(location.open().unwrap_err().to_string().contains("has been written to"));
        std::fs::write(&path, b"0").unwrap();
        assert!(location.open().unwrap_err().to_string().contains("has changed"));
    }
}
