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
use crate::train::state::Ended;

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
    let RunArguments { overwrite, resume, accept_changes, .. } = *arguments;
    let options = Options { overwrite, resume, accept_changes };
    let mut progress = Progress::new();
    let outcome = run::fine_tune(file, &environment, options, &mut progress);
    drop(progress);
    match outcome {
        Ok(outcome) => finish(&outcome, &signals, arguments, out),
        Err(run::Error::Stopped) => {
            report::error("stopped before training began; nothing was written", None);
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
    let recipe = arguments.recipe.recipe.display();
    let Some(adapter) = &outcome.adapter else {
        writeln!(
            out,
            "stopped after step {} of {}; a checkpoint lies in {}/checkpoints\n\nNext: go on with `tune run {recipe} --resume`.",
            outcome.steps,
            outcome.total_steps,
            outcome.output_dir.display()
        )?;
        return Ok(signals.exit());
    };
    if outcome.was_finished {
        writeln!(out, "this run is finished already; nothing was done")?;
    }
    if let Ended::Budget(spent) = outcome.ended {
        writeln!(
            out,
            "`{}` ended the run after step {} of {}: the adapter is that step's; `--resume` goes on from there",
            spent.key(),
            outcome.steps,
            outcome.total_steps
        )?;
    }
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
    writeln!(out, "{}  {}", paint(STRONG, "readers"), outcome.readers)?;
    let failed: Vec<String> =
        outcome.verdicts.iter().filter(|verdict| !verdict.passed).map(ToString::to_string).collect();
    if !failed.is_empty() {
        out.flush()?;
        report::error(
            &format!("a gate of the recipe is not met: {}", failed.join("; ")),
            Some("the adapter is written and whole; it is not as good as the recipe's `[gate]` asks for"),
        );
        return Ok(Exit::Gate);
    }
    writeln!(
        out,
        "\nNext: load it with PEFT (`PeftModel.from_pretrained(base, \"{}\")`), fold it into its base (`tune merge {} \
         --out merged`), or change the recipe and train again with `tune run {recipe} --overwrite`.",
        adapter.display(),
        adapter.display(),
    )?;
    Ok(Exit::Done)
}

/// Keeps the lines of a longer answer under its first one.
fn indented(text: &str) -> String {
    text.trim().replace('\n', "\n        ")
}
