//! `tune eval`.

use std::io::{self, Write};

use serde_json::json;

use super::console::Console;
use super::environment::{Signals, hub_cache};
use super::exit::Exit;
use super::style::{FAINT, STRONG, paint};
use super::talk_args::EvalArguments;
use crate::data::spec::Format;
use crate::files;
use crate::run::evaluate::{
    Evaluation, Extraction, Matching, Measured, Options, Report, Share, Subject, dataset,
};
use crate::run::{self, Environment};
use crate::units::Grouped;

/// Evaluates, and shows base and adapter side by side.
pub(super) fn eval(arguments: &EvalArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let matching = match (arguments.exact_match, Extraction::new(&arguments.extract)) {
        (false, _) => None,
        (true, Ok(extraction)) => Some(Matching {
            extraction,
            as_chat: arguments.chat,
            max_new_tokens: arguments.max_new_tokens,
            stops: arguments.stop.clone(),
        }),
        (true, Err(problem)) => {
            console.error(&format!("`--extract` is not a regular expression: {problem}"), None);
            return Ok(Exit::Recipe);
        }
    };
    let data = arguments.data.as_deref().zip(arguments.format);
    let data = data.map(|(path, format)| dataset(path, Format::from(format), &arguments.field));
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let options = Options { limit: arguments.limit, matching };
    let subject = Subject::of(arguments.subject.as_deref());
    let found = Evaluation::open(subject, arguments.model.choice(), data, options, &environment)
        .and_then(|evaluation| evaluation.run(console, &environment))
        .and_then(|report| {
            if let Some(path) = &arguments.out {
                let lines: String = report.lines.iter().map(|line| format!("{line}\n")).collect();
                files::write_bytes(path, lines.as_bytes())?;
            }
            Ok(report)
        });
    console.quiet();
    match found {
        Ok(report) => {
            console.event("result", &report);
            if !console.json() {
                show(&report, console.out())?;
            }
            Ok(Exit::Done)
        }
        Err(run::Error::Stopped) => {
            console.error("stopped before all rows were evaluated", None);
            console.event("note", &json!({"message": "nothing was written"}));
            Ok(signals.exit())
        }
        Err(error) => Ok(console.failure(&error)),
    }
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
    if let Some([base, adapter]) = report.only_one_right {
        let text = format!("{base} rows are right without the adapter alone, {adapter} with it alone");
        writeln!(out, "{:<13} {}", "", paint(FAINT, text))?;
    }
    writeln!(out, "{:<13} {}", "", paint(FAINT, "± and (a to b): 95 % intervals over rows like these"))
}
