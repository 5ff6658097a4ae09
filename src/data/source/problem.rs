//! What can be wrong with the files of a dataset: the dataset as a whole ([`Error`]), one row of it
//! ([`RowError`]), and many rows at once ([`BadRows`]). Knows how each is said to a person.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::data::example::{RowId, RowProblem};
use crate::units::Grouped;

/// How many bad rows are kept to be shown; the others are only counted.
pub const SHOWN_BAD_ROWS: usize = 20;

/// Where a row stands in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as the glob found it.
    pub file: Arc<Path>,
    /// The row's position in that file.
    pub position: Position,
}

/// A position in a file, in the terms in which a person would look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The line on which the row begins, from 1 (JSON, JSON lines, CSV).
    Line(u64),
    /// The row, from 0 (Arrow, Parquet).
    Row(u64),
}

/// `train.jsonl:17` (a line), `train.parquet[16]` (a row).
impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Position::Line(line) => write!(formatter, "{}:{line}", self.file.display()),
            Position::Row(row) => write!(formatter, "{}[{row}]", self.file.display()),
        }
    }
}

/// One row that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {}{problem}", Field(.field))]
pub struct RowError {
    /// The row.
    pub place: Place,
    /// JSON pointer of the field within the row (`/messages/0/content`); empty: the row as a whole.
    pub field: String,
    /// What was expected and what was found.
    pub problem: String,
}

impl RowError {
    pub(crate) fn new(place: Place, problem: RowProblem) -> RowError {
        RowError { place, field: problem.field, problem: problem.problem }
    }
}

struct Field<'a>(&'a str);

impl fmt::Display for Field<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(formatter, "{}: ", self.0) }
    }
}

/// The rows of a dataset that cannot be used: the first of them in full, all of them counted.
///
/// "First" is by row number, so that what is shown does not depend on how many threads looked.
#[derive(Clone, Debug, Default)]
pub struct BadRows {
    first: Vec<(RowId, RowError)>,
    bad: u64,
    seen: u64,
}

impl BadRows {
    /// Counts one good row.
    pub fn good(&mut self) {
        self.seen += 1;
    }

    /// Counts one bad row, and keeps it if it is among the first.
    pub fn bad(&mut self, row: RowId, error: RowError) {
        self.seen += 1;
        self.bad += 1;
        self.keep(row, error);
    }

    /// Adds what another thread saw.
    pub fn merge(&mut self, other: BadRows) {
        self.seen += other.seen;
        self.bad += other.bad;
        for (row, error) in other.first {
            self.keep(row, error);
        }
    }

    /// No bad row was seen.
    pub fn is_empty(&self) -> bool {
        self.bad == 0
    }

    /// How many rows were bad.
    pub fn count(&self) -> u64 {
        self.bad
    }

    /// How many rows were looked at.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The first [`SHOWN_BAD_ROWS`] bad rows, in order.
    pub fn first(&self) -> impl Iterator<Item = &(RowId, RowError)> {
        self.first.iter()
    }

    fn keep(&mut self, row: RowId, error: RowError) {
        let at = self.first.partition_point(|(kept, _)| *kept < row);
        if at < SHOWN_BAD_ROWS {
            self.first.insert(at, (row, error));
            self.first.truncate(SHOWN_BAD_ROWS);
        }
    }
}

impl fmt::Display for BadRows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {} rows cannot be used", Grouped(self.bad), Grouped(self.seen))?;
        for (_, error) in &self.first {
            write!(formatter, "\n  {error}")?;
        }
        match self.bad - self.first.len() as u64 {
            0 => Ok(()),
            more => write!(formatter, "\n  and {} more", Grouped(more)),
        }
    }
}

impl std::error::Error for BadRows {}

/// A dataset that cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The path names no file.
    #[error("{path}: no such file{hint}")]
    NoSuchFile {
        /// As the recipe has it.
        path: String,
        /// What to do, or nothing.
        hint: String,
    },
    /// The glob matches nothing.
    #[error("`{pattern}` matches no file")]
    NoMatch {
        /// As the recipe has it.
        pattern: String,
    },
    /// The glob is not one.
    #[error("`{pattern}` is not a valid pattern: {problem}")]
    Pattern {
        /// As the recipe has it.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The extension says no format known here.
    #[error("{}: {problem}", .file.display())]
    UnknownKind {
        /// The file.
        file: PathBuf,
        /// Which extensions there are, and what to do.
        problem: String,
    },
    /// The operating system could not read the file.
    #[error("{}: cannot be read: {problem}", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// The bytes are not what the extension says.
    #[error("{}: {problem}", .file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// What was expected and what was found, where.
        problem: String,
    },
    /// A file without rows.
    #[error("{}: holds no rows", .file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// `fields` maps a name that the format does not have.
    #[error("`fields` maps `{name}`, which the format `{format}` does not have; it has {known}{suggestion}")]
    UnknownField {
        /// The name on the left of the mapping.
        name: String,
        /// The dataset's format.
        format: &'static str,
        /// The canonical names of that format.
        known: String,
        /// The nearest of them, or nothing.
        suggestion: String,
    },
    /// A column that the format needs is not in the file.
    #[error("{}: no column `{column}`; it has {columns}{suggestion}", .file.display())]
    MissingColumn {
        /// The file.
        file: PathBuf,
        /// The column looked for, after the mapping.
        column: String,
        /// The canonical field that it is to fill.
        field: &'static str,
        /// The columns that exist.
        columns: String,
        /// What to do about it.
        suggestion: String,
    },
    /// Two columns have a name that the format reads.
    #[error("{}: two columns are called `{column}`; rename one of them", .file.display())]
    DoubledColumn {
        /// The file.
        file: PathBuf,
        /// Their name.
        column: String,
    },
    /// A column holds values that the format cannot use.
    #[error("{}: column `{column}`: expected {expected}, found {found}", .file.display())]
    ColumnType {
        /// The file.
        file: PathBuf,
        /// The column.
        column: String,
        /// What the format needs there.
        expected: &'static str,
        /// The column's type.
        found: String,
    },
}
