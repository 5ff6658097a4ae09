//! `tune report`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::quantization::{self, REPORT_ROWS};
use super::style::{STRONG, paint};
use crate::report;
use crate::run::named::run_folder;
use crate::run::quantize::report_on_run;

/// Arguments of `tune report`.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// The folder of a run, finished or not, or its adapter
    pub run: PathBuf,
    /// The file to write [default: report.html in the run folder]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print a summary in Markdown instead, as in `>> "$GITHUB_STEP_SUMMARY"`
    #[arg(long, conflicts_with = "output")]
    pub markdown: bool,
    /// First measure what 4 bits cost the base: the error of every weight, and the loss on held-out rows beside the dense one
    #[arg(long)]
    pub quantization: bool,
    /// Compare losses on the first COUNT held-out rows
    #[arg(long, value_name = "COUNT", default_value_t = REPORT_ROWS, requires = "quantization",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub report_rows: u64,
}

/// Writes the page.
pub(super) fn report(
    arguments: &ReportArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let run = run_folder(&arguments.run);
    if arguments.quantization {
        let mut show = |done, total| console.count("comparing", done as u64, total as u64);
        let found = report_on_run(&run, arguments.report_rows, &mut show, &context.environment)?;
        console.quiet();
        console.event("report", &found);
        if !arguments.markdown {
            quantization::show(&found, console.out())?;
        }
    }
    if arguments.markdown {
        return match report::markdown(&run) {
            Ok(text) => {
                console.event("result", &json!({"markdown": text}));
                write!(console.out(), "{text}")?;
                Ok(Exit::Done)
            }
            Err(error) => Ok(no_run(&error, console)),
        };
    }
    let output = arguments.output.clone().unwrap_or_else(|| run.join(report::FILE));
    match report::write(&run, &output) {
        Ok(()) => {
            console.event("result", &json!({"report": output.display().to_string()}));
            writeln!(console.out(), "{} {}", paint(STRONG, "report"), output.display())?;
            Ok(Exit::Done)
        }
        Err(error) => Ok(no_run(&error, console)),
    }
}

/// Reports why a run folder cannot be read.
pub(super) fn no_run(error: &report::Error, console: &mut Console<'_>) -> Exit {
    match error {
        report::Error::NoRun(_) => {
            console.error(&error.to_string(), Some("name a run's folder, the `output_dir` of its recipe"));
            Exit::Recipe
        }
        _ => {
            console.error(&error.to_string(), None);
            Exit::Resources
        }
    }
}
