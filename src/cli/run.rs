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
use crate::train::state::Ended;

/// Trains, and says what came of it.
pub(super) fn run(arguments: &RunArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let file =
        match RecipeFile::open(&arguments.recipe.recipe, &arguments.recipe.overrides_with(&arguments.device))
        {
            Ok(file) => file,
            Err(error) => return Ok(console.failure(&error.into())),
        };
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let RunArguments { overwrite, resume, accept_changes, fit, .. } = *arguments;
    let options = Options { overwrite, resume, accept_changes, fit, ..Options::default() };
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
            console.error("stopped before training began; nothing was written", None);
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
    let ended_by = match outcome.ended {
        Ended::Budget(spent) => Some(spent.key()),
        Ended::Done | Ended::Stopped => None,
    };
    json!({
        "output_dir": outcome.output_dir.display().to_string(),
        "adapter": outcome.adapter.as_ref().map(|path| path.display().to_string()),
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "ended_by": ended_by,
        "was_finished": outcome.was_finished,
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
    let failed: Vec<String> =
        outcome.verdicts.iter().filter(|verdict| !verdict.passed).map(ToString::to_string).collect();
    if console.json() {
        return Ok(match &outcome.adapter {
            None => signals.exit(),
            Some(_) if failed.is_empty() => Exit::Done,
            Some(_) => gate_failed(&failed, console),
        });
    }
    let out = console.out();
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
        writeln!(out, "\n{}  {}", paint(STRONG, "prompt"), visible(&sample.prompt))?;
        writeln!(out, "{}  {}", paint(FAINT, "before"), indented(&sample.before))?;
        writeln!(out, "{}   {}", paint(GOOD, "after"), indented(&sample.after))?;
    }
    writeln!(out, "\n{}  {}", paint(STRONG, "adapter"), adapter.display())?;
    writeln!(out, "{}  {}", paint(STRONG, "readers"), outcome.readers)?;
    if !failed.is_empty() {
        out.flush()?;
        return Ok(gate_failed(&failed, console));
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
    visible(text.trim()).replace('\n', "\n        ")
}

/// The adapter is on disk, and is not good enough.
fn gate_failed(failed: &[String], console: &mut Console<'_>) -> Exit {
    console.error(
        &format!("a gate of the recipe is not met: {}", failed.join("; ")),
        Some("the adapter is written and whole; it is not as good as the recipe's `[gate]` asks for"),
    );
    Exit::Gate
}
