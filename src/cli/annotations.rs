//! Findings in the log format of a CI system.
//!
//! GitHub: `::error file=F,line=L,endLine=M,col=C,endColumn=D,title=T::MESSAGE`, in which `%` and line ends are
//! percent-encoded, and in the properties `:` and `,` as well, so that text from a file cannot end the command or start
//! another one.

use std::fmt::Write;

use super::args::Annotations;
use super::finding::Finding;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// The command failed.
    Error,
    /// The command continues.
    Warning,
}

/// A finding as one line.
pub(super) fn line(system: Annotations, level: Level, finding: &Finding) -> String {
    match system {
        Annotations::Github => github(level, finding),
    }
}

fn github(level: Level, finding: &Finding) -> String {
    let mut properties: Vec<(&str, String)> = Vec::new();
    if let Some(location) = &finding.location {
        properties.push(("file", location.file.clone()));
        // GitHub accepts columns only if start and end are on one line.
        let one_line = location.end_line == location.line;
        let numbers = [
            ("line", location.line),
            ("endLine", location.end_line),
            ("col", location.column.filter(|_| one_line)),
            ("endColumn", location.end_column.filter(|_| one_line)),
        ];
        properties.extend(numbers.into_iter().filter_map(|(key, value)| Some((key, value?.to_string()))));
    }
    properties.extend(finding.code.clone().map(|code| ("title", code)));
    let word = match level {
        Level::Error => "error",
        Level::Warning => "warning",
    };
    let mut line = format!("::{word}");
    for (index, (key, value)) in properties.iter().enumerate() {
        let before = if index == 0 { ' ' } else { ',' };
        let _infallible = write!(line, "{before}{key}={}", property(value));
    }
    let message = match &finding.help {
        Some(help) => format!("{}\nhelp: {help}", finding.message),
        None => finding.message.clone(),
    };
    line + "::" + &data(&message)
}

/// Encodes the text after the second `::`.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Encodes a property's value.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::finding::Location;

    #[test]
    fn nothing_in_a_text_ends_the_command() {
        let finding = Finding {
            code: Some("recipe::unknown_key".into()),
            message: "50 %\r\n::error::x, y: z".into(),
            help: Some("do\nthat".into()),
            location: Some(Location {
                file: "a:b,c\n%.toml".into(),
                line: Some(3),
                column: Some(7),
                end_line: Some(3),
                end_column: Some(9),
            }),
        };
        assert_eq!(
            line(Annotations::Github, Level::Error, &finding),
            "::error file=a%3Ab%2Cc%0A%25.toml,line=3,endLine=3,col=7,endColumn=9,title=recipe%3A%3Aunknown_key::\
             50 %25%0D%0A::error::x, y: z%0Ahelp: do%0Athat"
        );
    }

    #[test]
    fn columns_are_left_out_where_two_lines_are_spanned() {
        let location = Location {
            file: "f".into(),
            line: Some(1),
            column: Some(5),
            end_line: Some(2),
            end_column: Some(1),
        };
        let finding = Finding { message: "m".into(), location: Some(location), ..Finding::default() };
        assert_eq!(
            line(Annotations::Github, Level::Warning, &finding),
            "::warning file=f,line=1,endLine=2::m"
        );
        assert_eq!(line(Annotations::Github, Level::Error, &Finding::new("m", None)), "::error::m");
    }
}
