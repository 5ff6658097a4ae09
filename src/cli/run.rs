//! `tune run`.

use std::io;

use clap::Args;
use serde_json::{Value, json};

use super::args::{DeviceArguments, RecipeArguments};
use super::console::Console;
use super::environment::{Context, Signals};
use super::exit::Exit;
use super::failure::Failure;
use super::lines::next;
use super::ranks::{RanksArguments, Silent};
use super::report;
use super::style::{FAINT, GOOD, STRONG, output_width, paint, visible, wrapped};
use crate::files::shell;
use crate::run::{self, Options, Outcome};
use crate::tensorboard::Recorder;
use crate::train::event::{Both, Observer};
use crate::train::folder::FolderError;
use crate::train::state::Ended;
use crate::train::team::{Team, TeamError};

/// Arguments of `tune run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// The device.
    #[command(flatten)]
    pub device: DeviceArguments,
    /// Choose the fastest micro-batches that fit into memory, up to the recipe's, with more accumulation: the optimizer
    /// steps stay the same
    #[arg(long)]
    pub fit: bool,
    /// Continue the run in the recipe's output folder from its newest checkpoint, if there is one
    #[arg(long)]
    pub resume: bool,
    /// With --resume: continue even if the recipe, the base or the data have changed; the adapter records it
    #[arg(long, requires = "resume")]
    pub accept_changes: bool,
    /// Replace an earlier run in the recipe's output folder
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
    /// Also write TensorBoard event files, into `tensorboard/` of the run folder
    #[arg(long)]
    pub tensorboard: bool,
    /// Several processes.
    #[command(flatten)]
    pub ranks: RanksArguments,
}

impl RunArguments {
    /// The same command, with `flags` instead of `--resume`, `--accept-changes` and `--overwrite`.
    fn typed(&self, flags: &[&str]) -> String {
        let own = [(self.fit, "--fit"), (self.tensorboard, "--tensorboard")];
        let own = own.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag));
        let ranks = self.ranks.typed();
        let own = own.chain(ranks.iter().map(String::as_str));
        self.recipe.typed("run", self.device, &own.chain(flags.iter().copied()).collect::<Vec<_>>())
    }

    /// The commands that go on after a failure, each with what it does.
    fn ways_on(&self, error: &run::Error) -> Vec<(&'static str, String)> {
        let resume = ("continue from the newest checkpoint", self.typed(&["--resume"]));
        match error {
            run::Error::NotTheSameRun { .. } => {
                vec![("continue with the changes", self.typed(&["--resume", "--accept-changes"]))]
            }
            run::Error::Folder(FolderError::Unfinished(_)) => {
                vec![resume, ("replace that run", self.typed(&["--overwrite"]))]
            }
            run::Error::Folder(FolderError::Occupied(_)) => {
                vec![("replace that run", self.typed(&["--overwrite"]))]
            }
            run::Error::Diverged { checkpoint: Some(_), .. }
            | run::Error::DeviceFailed(_)
            | run::Error::ChangedUnderWay { .. } => vec![resume],
            _ => Vec::new(),
        }
    }
}

/// Trains, and shows the result.
pub(super) fn run(
    arguments: &RunArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let team = arguments.ranks.team()?;
    if let Some(team) = team.as_ref().filter(|team| !team.is_first()) {
        return Ok(follow(arguments, team, context, console));
    }
    let outcome = match arguments.tensorboard {
        false => train(arguments, team.as_ref(), context, console),
        true => {
            let mut recorder = Recorder::default();
            let outcome = train(arguments, team.as_ref(), context, &mut Both(console, &mut recorder));
            if let Some(fault) = recorder.fault() {
                console.warning(&format!("the TensorBoard events are incomplete: {fault}"));
            }
            outcome
        }
    };
    console.quiet();
    match outcome {
        Err(run::Error::Stopped) => {
            console.error("stopped before training began; nothing was written", None);
            Ok(context.signals.exit())
        }
        Err(error @ run::Error::Output(_)) => Err(error.into()),
        Err(error) => {
            let exit = console.failure(&error);
            console.ways_on(&arguments.ways_on(&error));
            Ok(exit)
        }
        Ok(outcome) => Ok(finish(&outcome, context.signals, arguments, console)?),
    }
}

/// Trains, with the other ranks where there are any.
fn train(
    arguments: &RunArguments,
    team: Option<&Team>,
    context: &Context<'_>,
    observer: &mut dyn Observer,
) -> Result<Outcome, run::Error> {
    let file = arguments.recipe.open(arguments.device.device).map_err(run::Error::from);
    let environment = &context.environment;
    let RunArguments { overwrite, resume, accept_changes, fit, .. } = *arguments;
    let options = Options { overwrite, resume, accept_changes, fit, ..Options::default() };
    let exit = |error: &run::Error| match error {
        run::Error::Stopped => context.signals.exit().code(),
        error => report::exit(error).code(),
    };
    match team {
        None => run::fine_tune(file?, environment, options, observer),
        Some(team) => run::fine_tune_together(team, &exit, file, environment, options, observer),
    }
}

/// Trains as a rank that reports nothing but a failure of its own.
fn follow(arguments: &RunArguments, team: &Team, context: &Context<'_>, console: &mut Console<'_>) -> Exit {
    match train(arguments, Some(team), context, &mut Silent) {
        Ok(Outcome { ended: Ended::Stopped, .. }) | Err(run::Error::Stopped) => context.signals.exit(),
        Ok(_) => Exit::Done,
        Err(error) if matches!(error, run::Error::Team(TeamError::Elsewhere { .. })) || !team.reports() => {
            report::exit(&error)
        }
        Err(error) => console.failure(&error),
    }
}

/// The result of a run, as events.
fn events(outcome: &Outcome, console: &mut Console<'_>) {
    for sample in &outcome.samples {
        console.event("sample", sample);
    }
    console.event("result", &result_of(outcome));
}

/// The result of a run, as JSON.
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
    events(outcome, console);
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
    let Some(adapter) = &outcome.adapter else {
        writeln!(
            out,
            "stopped after step {} of {}; checkpoint in {}/checkpoints",
            outcome.steps,
            outcome.total_steps,
            outcome.output_dir.display()
        )?;
        next(out, &[("continue", arguments.typed(&["--resume"]))])?;
        return Ok(signals.exit());
    };
    if outcome.was_finished {
        writeln!(out, "this run was finished before; nothing to do")?;
    }
    if let Ended::Budget(spent) = outcome.ended {
        let text = format!(
            "`{}` ended the run after step {} of {}; the adapter is that step's; `--resume` continues from it",
            spent.key(),
            outcome.steps,
            outcome.total_steps
        );
        writeln!(out, "{}", wrapped(&text, output_width(), ""))?;
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
        writeln!(out, "\n{}", below(&paint(STRONG, "prompt"), &sample.prompt))?;
        writeln!(out, "{}", below(&paint(FAINT, "before"), &sample.before))?;
        writeln!(out, "{}", below(&paint(GOOD, " after"), &sample.after))?;
    }
    writeln!(out, "\n{}  {}", paint(STRONG, "adapter"), adapter.display())?;
    let readers = format!("{}  {}", paint(STRONG, "readers"), outcome.readers);
    writeln!(out, "{}", wrapped(&readers, output_width(), "         "))?;
    if !failed.is_empty() {
        out.flush()?;
        return Ok(gate_failed(&failed, console));
    }
    let run = outcome.output_dir.to_string_lossy();
    let command = |words: &[&str]| shell::command(words);
    next(
        out,
        &[
            ("talk to it", command(&["tune", "chat", &run])),
            ("measure it", command(&["tune", "eval", &run])),
            ("write it for Ollama", command(&["tune", "export", &run, "--for", "ollama", "--out", "gguf"])),
            ("merge it into its base", command(&["tune", "merge", &run, "--out", "merged"])),
            ("change the recipe and train again", arguments.typed(&["--overwrite"])),
        ],
    )?;
    Ok(Exit::Done)
}

/// A text of a sample beside its label; further lines are aligned.
fn below(label: &str, text: &str) -> String {
    const INDENT: &str = "        ";
    let lines: Vec<String> = visible(text.trim()).lines().map(str::trim_start).map(str::to_owned).collect();
    let text = format!("{label}  {}", lines.join("\n"));
    match output_width() {
        Some(width) => wrapped(&text, Some(width), INDENT),
        None => text.replace('\n', &format!("\n{INDENT}")),
    }
}

/// The exit of a run whose adapter is written but fails a gate.
fn gate_failed(failed: &[String], console: &mut Console<'_>) -> Exit {
    console.error(
        &format!("the adapter fails a gate of the recipe: {}", failed.join("; ")),
        Some("the adapter is complete and on disk; it does not reach the recipe's `[gate]`"),
    );
    Exit::Gate
}
