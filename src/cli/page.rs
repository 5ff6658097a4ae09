//! `tune report`.

use std::io;

use serde_json::json;

use super::args::ReportArguments;
use super::console::Console;
use super::exit::Exit;
use super::style::{STRONG, paint};
use crate::report;

/// Writes the page.
pub(super) fn report(arguments: &ReportArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let output = arguments.output.clone().unwrap_or_else(|| arguments.run.join(report::FILE));
    match report::write(&arguments.run, &output) {
        Ok(()) => {
            console.event("result", &json!({"report": output.display().to_string()}));
            writeln!(console.out(), "{} {}", paint(STRONG, "report"), output.display())?;
            Ok(Exit::Done)
        }
        Err(error @ report::Error::NoRun(_)) => {
            console.error(&error.to_string(), Some("name the folder that `output_dir` of a recipe named"));
            Ok(Exit::Recipe)
        }
        Err(error) => {
            console.error(&error.to_string(), None);
            Ok(Exit::Resources)
        }
    }
}
