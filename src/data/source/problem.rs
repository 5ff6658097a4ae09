//! What can be wrong with the files of a dataset: the dataset as a whole ([`Error`]), one row of it
//! ([`RowError`]), and many rows at once ([`BadRows`]). Knows how each is said to a person.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::data::example::{RowId, RowProblem};
use crate::units::Grouped;

/// How many bad rows are kept to be shown; the others are only counted.
pub const SHOWN_BAD_ROWS: usize = 20;

/// How many of the rows that are too long are shown.
const SHOWN_TOO_LONG: usize = 3;

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
    first: Vec<Kept>,
    bad: u64,
    seen: u64,
    /// The most tokens that a row may have.
    max_seq_len: usize,
    /// Tokens of each row that has more.
    too_long: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Kept {
    row: RowId,
    error: RowError,
    /// Where it has too many.
    tokens: Option<usize>,
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
        self.keep(Kept { row, error, tokens: None });
    }

    /// As [`Self::bad`], of a row that has more tokens than `max_seq_len`.
    pub fn too_long(&mut self, row: RowId, error: RowError, tokens: usize, max_seq_len: usize) {
        self.seen += 1;
        self.bad += 1;
        self.max_seq_len = max_seq_len;
        self.too_long.push(tokens);
        self.keep(Kept { row, error, tokens: Some(tokens) });
    }

    /// Adds what another thread saw.
    pub fn merge(&mut self, other: BadRows) {
        self.seen += other.seen;
        self.bad += other.bad;
        self.max_seq_len = self.max_seq_len.max(other.max_seq_len);
        self.too_long.extend(other.too_long);
        for kept in other.first {
            self.keep(kept);
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
    pub fn first(&self) -> impl Iterator<Item = (RowId, &RowError)> {
        self.first.iter().map(|kept| (kept.row, &kept.error))
    }

    fn keep(&mut self, new: Kept) {
        let at = self.first.partition_point(|kept| kept.row < new.row);
        if at < SHOWN_BAD_ROWS {
            self.first.insert(at, new);
            self.first.truncate(SHOWN_BAD_ROWS);
        }
    }
}

impl fmt::Display for BadRows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {} rows cannot be used", Grouped(self.bad), Grouped(self.seen))?;
        self.write_too_long(formatter)?;
        let mut others = self.bad - self.too_long.len() as u64;
        for kept in self.first.iter().filter(|kept| kept.tokens.is_none()) {
            write!(formatter, "\n  {}", kept.error)?;
            others -= 1;
        }
        match others {
            0 => Ok(()),
            more => write!(formatter, "\n  and {} more", Grouped(more)),
        }
    }
}

impl BadRows {
    /// The rows that are too long, together: how long they are, what would fit, and the first of them.
    fn write_too_long(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(&longest) = self.too_long.iter().max() else { return Ok(()) };
        let count = self.too_long.len() as u64;
        let twice = self.max_seq_len.saturating_mul(2);
        let fitting = self.too_long.iter().filter(|tokens| **tokens <= twice).count() as u64;
        let some = match fitting {
            0 => String::new(),
            _ if fitting == count => String::new(),
            _ => format!("{twice} would fit {} of them, ", Grouped(fitting)),
        };
        let rows = Grouped(count).of("row has", "rows have");
        write!(
            formatter,
            "\n{rows} more than max_seq_len = {} tokens; {some}{longest} would fit all. Raise max_seq_len, or set \
             on_overflow to \"drop\" or \"truncate\"",
            self.max_seq_len
        )?;
        let shown = self.first.iter().filter_map(|kept| Some((&kept.error.place, kept.tokens?)));
        for (place, tokens) in shown.take(SHOWN_TOO_LONG) {
            write!(formatter, "\n    {place}: {tokens} tokens")?;
        }
        match count.saturating_sub(SHOWN_TOO_LONG as u64) {
            0 => Ok(()),
            more => write!(formatter, "\n    and {} more", Grouped(more)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_too_long_are_one_line_with_what_would_fit() {
        let row = |row| RowId { dataset: 0, row };
        let error = |line, problem: &str| {
            let place = Place { file: Path::new("a.jsonl").into(), position: Position::Line(line) };
            RowError { place, field: String::new(), problem: problem.to_owned() }
        };
        let (mut one, mut other) = (BadRows::default(), BadRows::default());
        for (number, tokens) in [(0, 100), (1, 70), (2, 300), (5, 90)] {
            one.too_long(row(number), error(number + 1, "too long"), tokens, 64);
        }
        other.bad(row(3), error(4, "no text"));
        other.good();
        other.merge(one);
        assert_eq!(
            other.to_string(),
            "5 of 6 rows cannot be used\n4 rows have more than max_seq_len = 64 tokens; 128 would fit 3 of them, 300 \
             would fit all. Raise max_seq_len, or set on_overflow to \"drop\" or \"truncate\"\n    a.jsonl:1: 100 \
             tokens\n    a.jsonl:2: 70 tokens\n    a.jsonl:3: 300 tokens\n    and 1 more\n  a.jsonl:4: no text"
        );
        // For programs every row is there.
        assert_eq!(other.first().map(|(id, _)| id.row).collect::<Vec<_>>(), [0, 1, 2, 3, 5]);
    }
}
