//! `tune run`.

use std::io;

use serde_json::{Value, json};

use super::args::RunArguments;
use super::console::Console;
use super::environment::{Signals, hub_cache};
use super::exit::Exit;
use super::style::{FAINT, GOOD, STRONG, paint, visible};
use crate::recipe::RecipeFile;
use crate::run::{self, Environment, Options, Outcome};
use crate::tensorboard::Recorder;
use crate::train::event::Both;

/// Trains, and says what came of it.
pub(super) fn run(arguments: &RunArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let file = match RecipeFile::open(&arguments.recipe.recipe, &arguments.recipe.overrides) {
        Ok(file) => file,
        Err(error) => return Ok(console.failure(&error.into())),
    };
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let options = Options { overwrite: arguments.overwrite };
    let outcome = match arguments.tensorboard {
        false => run::fine_tune(file, &environment, options, console),
        true => {
            let mut recorder = Recorder::default();
            let outcome = run::fine_tune(file, &environment, options, &mut Both(console, &mut recorder));
            if let Some(fault) = recorder.fault() {
                console.warning(&format!("the TensorBoard events are incomplete: {fault}"));
            }
            outcome
        }
    };
    console.quiet();
    match outcome {
        Ok(outcome) => finish(&outcome, &signals, arguments, console),
        Err(run::Error::Stopped) => {
            console.error("stopped before the first step; nothing was written", None);
            Ok(signals.exit())
        }
        Err(error) => Ok(console.failure(&error)),
    }
}

/// What came of a run, for programs.
pub(super) fn tell(outcome: &Outcome, console: &mut Console<'_>) {
    for sample in &outcome.samples {
        console.event("sample", sample);
    }
    console.event("result", &result_of(outcome));
}

/// What came of a run, as JSON.
pub(super) fn result_of(outcome: &Outcome) -> Value {
    let evaluations = outcome.evaluations.as_ref();
    json!({
        "output_dir": outcome.output_dir.display().to_string(),
        "adapter": outcome.adapter.as_ref().map(|path| path.display().to_string()),
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "eval_loss_before": evaluations.map(|(before, _)| before.eval_loss),
        "eval_loss": evaluations.map(|(_, after)| after.eval_loss),
    })
}

fn finish(
    outcome: &Outcome,
    signals: &Signals,
    arguments: &RunArguments,
    console: &mut Console<'_>,
) -> io::Result<Exit> {
    tell(outcome, console);
    if console.json() {
        return Ok(if outcome.adapter.is_some() { Exit::Done } else { signals.exit() });
    }
    let out = console.out();
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
        writeln!(out, "\n{}  {}", paint(STRONG, "prompt"), visible(&sample.prompt))?;
        writeln!(out, "{}  {}", paint(FAINT, "before"), indented(&sample.before))?;
        writeln!(out, "{}   {}", paint(GOOD, "after"), indented(&sample.after))?;
    }
    writeln!(out, "\n{}  {}", paint(STRONG, "adapter"), adapter.display())?;
    writeln!(
        out,
        "\nNext: load it with PEFT (`PeftModel.from_pretrained(base, \"{}\")`), or change the recipe and train again \
         with `tune run {} --overwrite`.",
        adapter.display(),
        arguments.recipe.recipe.display()
    )?;
    Ok(Exit::Done)
}

/// Keeps the lines of a longer answer under its first one.
fn indented(text: &str) -> String {
    visible(text.trim()).replace('\n', "\n        ")
}
