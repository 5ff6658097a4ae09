//! A run folder as one HTML page: no network, no server, no script; charts are drawn inline.
//!
//! Uses the files that exist so far, so that a running run has a page too, which tells a browser to read it again.
//! Everything from a file is escaped, and the page's security policy forbids loading anything.

mod chart;
mod experts;
mod html;
mod markdown;
mod page;
mod read;
mod sections;
mod summary;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files;
use crate::record;

pub use summary::{State, Summary, summary};

/// Time after which a browser reads the page of a running run again.
pub const REFRESH: Duration = Duration::from_secs(10);
/// Name of the page in the run folder.
pub const FILE: &str = "report.html";

/// Why a page cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder contains no files of a run.
    #[error("{} is not a run folder: it has neither recipe.toml nor metrics.jsonl", .0.display())]
    NoRun(PathBuf),
    /// A file cannot be read, or the page cannot be written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A file is invalid.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// A file is implausibly large.
    #[error("{} has {bytes} bytes; the limit is {most}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        most: u64,
    },
}

/// Writes the page of the run in the folder `run` to the file `output`.
///
/// # Errors
/// The folder is not a run folder, one of its files is invalid, or the page cannot be written.
pub fn write(run: &Path, output: &Path) -> Result<(), Error> {
    let page = page(run)?;
    Ok(files::write_bytes(output, page.as_bytes())?)
}

/// The run in the folder `run` in Markdown, for the summary of a CI job.
///
/// # Errors
/// As [`page()`].
pub fn markdown(run: &Path) -> Result<String, Error> {
    Ok(markdown::markdown(&read::Run::read(run)?))
}

/// The page of the run in the folder `run`.
///
/// # Errors
/// As [`write()`], except those of writing.
pub fn page(run: &Path) -> Result<String, Error> {
    Ok(page::page(&read::Run::read(run)?))
}
