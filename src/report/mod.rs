//! A run folder as one HTML page: no network, no server, no script; charts are drawn inline.
//!
//! Reads what a run folder holds, whatever of it is there yet, so that a run under way has a page too. Everything that
//! comes from a file is escaped, and the page forbids itself to load anything.

mod chart;
mod html;
mod page;
mod read;
mod sections;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::files;
use crate::record;

/// Name of the page in the run folder.
pub const FILE: &str = "report.html";

/// A page that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder holds nothing that a run writes.
    #[error("{} holds no run: neither recipe.toml nor metrics.jsonl is there", .0.display())]
    NoRun(PathBuf),
    /// A file is there and cannot be read, or the page cannot be written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A file is there, and is not what a run writes.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// A file of the run is larger than any that a run writes.
    #[error("{} has {bytes} bytes, more than the {most} that are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most.
        most: u64,
    },
}

/// Writes the page of the run in the folder `run` to the file `output`.
///
/// # Errors
/// The folder holds no run, one of its files cannot be read or believed, or the page cannot be written.
pub fn write(run: &Path, output: &Path) -> Result<(), Error> {
    let page = page(run)?;
    Ok(files::write_bytes(output, page.as_bytes())?)
}

/// The page of the run in the folder `run`.
///
/// # Errors
/// As [`write()`], but for writing.
pub fn page(run: &Path) -> Result<String, Error> {
    Ok(page::page(&read::Run::read(run)?))
}
