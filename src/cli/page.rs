//! `tune report`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::console::Console;
use super::exit::Exit;
use super::failure::Failure;
use super::style::{STRONG, paint};
use crate::report;

/// Arguments of `tune report`.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// The folder of a run, finished or not
    pub run: PathBuf,
    /// The file to write [default: report.html in the run folder]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Writes the page.
pub(super) fn report(arguments: &ReportArguments, console: &mut Console<'_>) -> Result<Exit, Failure> {
    let output = arguments.output.clone().unwrap_or_else(|| arguments.run.join(report::FILE));
    match report::write(&arguments.run, &output) {
        Ok(()) => {
            console.event("result", &json!({"report": output.display().to_string()}));
            writeln!(console.out(), "{} {}", paint(STRONG, "report"), output.display())?;
            Ok(Exit::Done)
        }
        Err(error @ report::Error::NoRun(_)) => {
            console.error(&error.to_string(), Some("name a run's folder, the `output_dir` of its recipe"));
            Ok(Exit::Recipe)
        }
        Err(error) => {
            console.error(&error.to_string(), None);
            Ok(Exit::Resources)
        }
    }
}
