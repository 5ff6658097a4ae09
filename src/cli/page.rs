//! `tune report`.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::lines::next;
use super::quantization::{self, REPORT_ROWS};
use super::style::{STRONG, paint};
use crate::files::shell;
use crate::report::{self, State};
use crate::run::named::run_folder;
use crate::run::quantize::report_on_run;

/// Time between two looks at whether the user wants to leave.
const PATIENCE: Duration = Duration::from_millis(50);

/// Arguments of `tune report`.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// The folder of a run, finished or not, or its adapter
    pub run: PathBuf,
    /// The file to write [default: report.html in the run folder]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write the page anew every ten seconds until the run ends or Ctrl-C; a browser that shows it reads it again
    #[arg(long)]
    pub watch: bool,
    /// Print a summary in Markdown instead, as in `>> "$GITHUB_STEP_SUMMARY"`
    #[arg(long, conflicts_with_all = ["output", "watch"])]
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
    let mut is_first = true;
    loop {
        // Asked first: the page of a run that ends meanwhile is its last.
        let is_running = report::summary(&run).is_ok_and(|summary| summary.state == State::Running);
        if let Err(error) = report::write(&run, &output) {
            return Ok(no_run(&error, console));
        }
        if is_first {
            console.event("result", &json!({"report": output.display().to_string()}));
            writeln!(console.out(), "{} {}", paint(STRONG, "report"), output.display())?;
            console.out().flush()?;
        }
        if is_first && is_running && !arguments.watch {
            let name = arguments.run.to_string_lossy();
            let command = shell::command(["tune", "report", &name, "--watch"]);
            next(console.out(), &[("to keep the page current while the run goes on", command)])?;
        }
        if !is_running || !arguments.watch || !waited(context) {
            return Ok(Exit::Done);
        }
        is_first = false;
    }
}

/// Waits until the page is due again; false after a signal.
fn waited(context: &Context<'_>) -> bool {
    let end = Instant::now() + report::REFRESH;
    while Instant::now() < end {
        if context.signals.raised() {
            return false;
        }
        thread::sleep(PATIENCE);
    }
    true
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
