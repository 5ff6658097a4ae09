//! `tune run`.

use std::io::{self, Write};

use super::args::RunArguments;
use super::environment::{Signals, hub_cache};
use super::exit::Exit;
use super::progress::Progress;
use super::report;
use super::style::{FAINT, GOOD, STRONG, paint};
use crate::recipe::RecipeFile;
use crate::run::{self, Environment, Options, Outcome};

/// Trains, and says what came of it.
pub(super) fn run(arguments: &RunArguments, out: &mut impl Write) -> io::Result<Exit> {
    let file = match RecipeFile::open(&arguments.recipe.recipe, &arguments.recipe.overrides) {
        Ok(file) => file,
        Err(error) => return Ok(report::failure(&error.into())),
    };
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let options = Options { overwrite: arguments.overwrite };
    let mut progress = Progress::new();
    let outcome = run::fine_tune(file, &environment, options, &mut progress);
    drop(progress);
    match outcome {
        Ok(outcome) => finish(&outcome, &signals, arguments, out),
        Err(run::Error::Stopped) => {
            report::error("stopped before the first step; nothing was written", None);
            Ok(signals.exit())
        }
        Err(error) => Ok(report::failure(&error)),
    }
}

fn finish(
    outcome: &Outcome,
    signals: &Signals,
    arguments: &RunArguments,
    out: &mut impl Write,
) -> io::Result<Exit> {
    let Some(adapter) = &outcome.adapter else {
        writeln!(
            out,
            "stopped after step {}; a checkpoint lies in {}/checkpoints",
            outcome.steps,
            outcome.output_dir.display()
        )?;
        return Ok(signals.exit());
    };
    if let Some((before, after)) = &outcome.evaluations {
        writeln!(
            out,
            "\n{}  {:.4} before, {} after",
            paint(STRONG, "held-out loss"),
            before.eval_loss,
            paint(GOOD, format!("{:.4}", after.eval_loss))
        )?;
    }
    for sample in &outcome.samples {
        writeln!(out, "\n{}  {}", paint(STRONG, "prompt"), sample.prompt)?;
        writeln!(out, "{}  {}", paint(FAINT, "before"), indented(&sample.before))?;
        writeln!(out, "{}   {}", paint(GOOD, "after"), indented(&sample.after))?;
    }
    writeln!(out, "\n{}  {}", paint(STRONG, "adapter"), adapter.display())?;
    if let Some(readers) = &outcome.readers {
        writeln!(out, "{}  {readers}", paint(STRONG, "readers"))?;
    }
    writeln!(
        out,
        "\nNext: load it with PEFT (`PeftModel.from_pretrained(base, \"{}\")`), fold it into its base (`tune merge {} \
         --out merged`), or change the recipe and train again with `tune run {} --overwrite`.",
        adapter.display(),
        adapter.display(),
        arguments.recipe.recipe.display()
    )?;
    Ok(Exit::Done)
}

/// Keeps the lines of a longer answer under its first one.
fn indented(text: &str) -> String {
    text.trim().replace('\n', "\n        ")
}
