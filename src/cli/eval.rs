//! `tune eval`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{ModelArguments, length, pair};
use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::style::{FAINT, STRONG, paint};
use crate::data::spec::Format;
use crate::files;
use crate::run;
use crate::run::evaluate::{
    Evaluation, Extraction, GSM8K_ANSWER, Matching, Measured, Options, Report, Share, Subject, dataset,
};
use crate::run::named::{Named, is_run, run_folder};
use crate::units::Grouped;

/// Arguments of `tune eval`.
#[derive(Debug, Args)]
pub struct EvalArguments {
    /// A finished run or a recipe, which provides model and held-out rows; with --data also an adapter or a base model
    #[arg(value_name = "RUN|RECIPE|MODEL")]
    pub subject: Option<PathBuf>,
    /// Evaluate on this file, or on the files that match a glob, instead
    #[arg(long, value_name = "PATH", requires = "format")]
    pub data: Option<String>,
    /// Record format of --data
    #[arg(long, value_enum, value_name = "FORMAT", requires = "data")]
    pub format: Option<Format>,
    /// Map a field of the format to another name: `--field completion=answer` (repeatable)
    #[arg(long, value_name = "OURS=THEIRS", requires = "data", value_parser = pair)]
    pub field: Vec<(String, String)>,
    /// Evaluate only the first COUNT rows
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Write one JSON object per row to this file: its loss, and the answers
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The model.
    #[command(flatten, next_help_heading = "Model")]
    pub model: ModelArguments,
    /// Also answer every row's prompt, and compare the value extracted from the answer with the expected one
    #[arg(long, help_heading = "Exact match")]
    pub exact_match: bool,
    /// Regular expression that extracts the value; its first group, if it has one
    #[arg(
        long,
        value_name = "REGEX",
        requires = "exact_match",
        default_value = GSM8K_ANSWER,
        help_heading = "Exact match"
    )]
    pub extract: String,
    /// Put text prompts into a user message of the chat template; else as in training
    #[arg(long, requires = "exact_match", help_heading = "Exact match")]
    pub chat: bool,
    /// Longest answer, in tokens
    #[arg(
        long,
        default_value_t = 512,
        value_name = "COUNT",
        value_parser = length,
        requires = "exact_match",
        help_heading = "Exact match"
    )]
    pub max_new_tokens: usize,
    /// A text that ends an answer (repeatable)
    #[arg(long, value_name = "TEXT", requires = "exact_match", help_heading = "Exact match")]
    pub stop: Vec<String>,
}

/// Evaluates, and shows base and adapter side by side.
pub(super) fn eval(
    arguments: &EvalArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let matching = match (arguments.exact_match, Extraction::new(&arguments.extract)) {
        (false, _) => None,
        (true, Ok(extraction)) => Some(Matching {
            extraction,
            as_chat: arguments.chat,
            max_new_tokens: arguments.max_new_tokens,
            stops: arguments.stop.clone(),
        }),
        (true, Err(problem)) => {
            console.error(&format!("`--extract` is not a valid regular expression: {problem}"), None);
            return Ok(Exit::Recipe);
        }
    };
    let data = arguments.data.as_deref().zip(arguments.format);
    let data = data.map(|(path, format)| dataset(path, format, &arguments.field));
    let options = Options { limit: arguments.limit, matching };
    let environment = &context.environment;
    let path = arguments.subject.as_deref().map(run_folder);
    let named = path.as_deref().filter(|path| !is_run(path) && !path.is_file());
    let model = match named.map(|path| path.to_string_lossy()) {
        Some(name) if data.is_some() || Named::of(&name, environment.hub_cache).is_some() => {
            arguments.model.naming(Some(&name), environment.hub_cache)?
        }
        _ => arguments.model.clone(),
    };
    let subject = match (named, &path) {
        (Some(_), _) if model != arguments.model => Subject::Choice,
        _ => Subject::of(path.as_deref()),
    };
    let evaluated = Evaluation::open(subject, model.choice(), data, options, environment)
        .and_then(|evaluation| evaluation.run(console, environment));
    let report = match evaluated {
        Err(run::Error::Stopped) => {
            console.error("stopped before all rows were evaluated", None);
            console.event("note", &json!({"message": "nothing was written"}));
            return Ok(context.signals.exit());
        }
        evaluated => evaluated?,
    };
    if let Some(path) = &arguments.out {
        let lines: String = report.lines.iter().map(|line| format!("{line}\n")).collect();
        files::write_bytes(path, lines.as_bytes())?;
    }
    console.quiet();
    console.event("result", &report);
    show(&report, console.out())?;
    Ok(Exit::Done)
}

fn show(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{} {}, {} supervised tokens: {}",
        paint(STRONG, format!("{:<13}", "rows")),
        Grouped(report.rows),
        Grouped(report.supervised_tokens),
        report.origin
    )?;
    let adapter = report.adapter.as_ref();
    if adapter.is_some() {
        writeln!(
            out,
            "{}",
            paint(STRONG, format!("{:<13} {:<26} {:<26} {}", "", "base", "with adapter", "change"))
        )?;
    }
    let mut line = |name: &str, of: &dyn Fn(&Measured) -> String, change: String| {
        let adapted = adapter.map_or(String::new(), of);
        let text = format!("{:<26} {adapted:<26} {change}", of(&report.base));
        writeln!(out, "{} {}", paint(STRONG, format!("{name:<13}")), text.trim_end())
    };
    let loss = |measured: &Measured| {
        let margin = measured.loss.margin.map_or(String::new(), |margin| format!(" ± {margin:.4}"));
        format!("{:.4}{margin}", measured.loss.loss)
    };
    let change = |of: &dyn Fn(&Measured) -> f64, digits: usize, unit: &str| {
        adapter.map_or(String::new(), |adapter| format!("{:+.digits$}{unit}", of(adapter) - of(&report.base)))
    };
    line("loss", &loss, change(&|measured| measured.loss.loss, 4, ""))?;
    let perplexity = |measured: &Measured| format!("{:.3}", measured.loss.perplexity);
    line("perplexity", &perplexity, change(&|measured| measured.loss.perplexity, 3, ""))?;
    if report.base.exact_match.is_some() {
        let percent = |share: Share| {
            format!("{:.1} % ({:.1} to {:.1})", 100.0 * share.share, 100.0 * share.low, 100.0 * share.high)
        };
        let matched = |measured: &Measured| measured.exact_match.map_or(String::new(), percent);
        let share = |measured: &Measured| 100.0 * measured.exact_match.map_or(0.0, |share| share.share);
        line("exact match", &matched, change(&share, 1, " points"))?;
    }
    if report.base.prefers_chosen.is_some() {
        let percent = |share: Share| {
            format!("{:.1} % ({:.1} to {:.1})", 100.0 * share.share, 100.0 * share.low, 100.0 * share.high)
        };
        let preferred = |measured: &Measured| measured.prefers_chosen.map_or(String::new(), percent);
        let share = |measured: &Measured| 100.0 * measured.prefers_chosen.map_or(0.0, |share| share.share);
        line("chosen first", &preferred, change(&share, 1, " points"))?;
    }
    if let Some(share) = report.reward_accuracy {
        let text = format!(
            "the adapter raises the chosen answer above the rejected one in {} of {} pairs",
            share.count, share.of
        );
        writeln!(out, "{:<13} {}", "", paint(FAINT, text))?;
    }
    if let Some([base, adapter]) = report.only_one_right {
        let text = format!("{base} rows are right only without the adapter, {adapter} only with it");
        writeln!(out, "{:<13} {}", "", paint(FAINT, text))?;
    }
    writeln!(out, "{:<13} {}", "", paint(FAINT, "± and (a to b): 95 % intervals over rows like these"))
}
