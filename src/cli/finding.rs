//! An error as a list of findings, each with message, help and location, for annotations and events.

use serde::Serialize;

use super::report::way_out;
use crate::data::error::Error as DataError;
use crate::data::source::{self, BadRows, Position, RowError};
use crate::document::{Problem, Problems};
use crate::recipe;
use crate::run;

/// The source name of an override on the command line.
const OVERRIDE: &str = "--set";

/// One problem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The kind (`recipe::unknown_key`), if it has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The problem.
    pub message: String,
    /// The remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Its place in a file.
    #[serde(flatten)]
    pub location: Option<Location>,
}

/// A place in a file. Lines and columns count from 1, columns in characters; the end is exclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Location {
    /// The file, as named by the user.
    pub file: String,
    /// First line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// First column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// Last line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_line: Option<u64>,
    /// Column after the last character.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_column: Option<u64>,
}

impl Location {
    fn file(path: &std::path::Path) -> Option<Self> {
        Some(Self { file: path.display().to_string(), ..Self::default() })
    }
}

impl Finding {
    /// A problem without a location.
    pub(super) fn new(message: impl Into<String>, help: Option<&str>) -> Self {
        Self { message: message.into(), help: help.map(str::to_owned), ..Self::default() }
    }

    fn of_problem(problem: &Problem) -> Self {
        let place = problem.place();
        let mut message = problem.to_string();
        let location = match place.source().name() {
            OVERRIDE => {
                message += &format!(" (in `{OVERRIDE} {}`)", place.source().text());
                None
            }
            file => {
                let (end_line, end_column) = place.end();
                Some(Location {
                    file: file.to_owned(),
                    line: Some(place.line() as u64),
                    column: Some(place.column() as u64),
                    end_line: Some(end_line as u64),
                    end_column: Some(end_column as u64),
                })
            }
        };
        let help = problem.way_out().map(str::to_owned);
        Self { code: Some(problem.kind().to_owned()), message, help, location }
    }

    fn of_row(error: &RowError) -> Self {
        let mut location = Location { file: error.place.file.display().to_string(), ..Location::default() };
        let mut message = match error.field.as_str() {
            "" => error.problem.clone(),
            field => format!("{field}: {}", error.problem),
        };
        match error.place.position {
            Position::Line(line) => location.line = Some(line),
            Position::Row(row) => message = format!("row {row}: {message}"),
        }
        Self { code: Some("data::row".into()), message, help: None, location: Some(location) }
    }
}

/// Splits an error into its findings.
pub(super) fn findings(error: &run::Error) -> Vec<Finding> {
    match error {
        run::Error::Recipe(recipe::Error::Problems(problems)) => of_problems(problems),
        run::Error::Recipe(error) => {
            let file = match error {
                recipe::Error::Unreadable { path, .. }
                | recipe::Error::TooLarge { path, .. }
                | recipe::Error::OtherLanguage { path, .. } => Location::file(path),
                recipe::Error::Problems(_) => None,
            };
            let text = |value: Option<Box<dyn std::fmt::Display + '_>>| value.map(|value| value.to_string());
            vec![Finding {
                code: text(miette::Diagnostic::code(error)),
                message: error.to_string(),
                help: text(miette::Diagnostic::help(error)),
                location: file,
            }]
        }
        run::Error::Data(DataError::Rows(rows)) => of_rows(rows),
        run::Error::Data(DataError::Row(row)) => vec![Finding::of_row(row)],
        run::Error::Data(DataError::Source(error)) => {
            let location = match error {
                source::Error::UnknownKind { file, .. }
                | source::Error::Io { file, .. }
                | source::Error::Corrupt { file, .. }
                | source::Error::Empty { file }
                | source::Error::MissingColumn { file, .. }
                | source::Error::ColumnType { file, .. } => Location::file(file),
                _ => None,
            };
            vec![Finding {
                code: Some("data::source".into()),
                message: error.to_string(),
                help: None,
                location,
            }]
        }
        error => vec![Finding::new(error.to_string(), way_out(error).as_deref())],
    }
}

fn of_rows(rows: &BadRows) -> Vec<Finding> {
    let mut all: Vec<Finding> = rows.first().map(|(_, error)| Finding::of_row(error)).collect();
    let more = rows.count().saturating_sub(all.len() as u64);
    if more > 0 {
        let message = format!("{more} more rows cannot be used, {} in total", rows.count());
        all.push(Finding { code: Some("data::rows".into()), message, ..Finding::default() });
    }
    all
}

fn of_problems(problems: &Problems) -> Vec<Finding> {
    problems.iter().map(Finding::of_problem).collect()
}
