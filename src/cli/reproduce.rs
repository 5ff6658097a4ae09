//! `tune reproduce`.

use std::io;
use std::path::PathBuf;
use std::process;

use clap::Args;
use serde_json::json;

use super::console::Console;
use super::environment::{Context, Signals};
use super::exit::Exit;
use super::failure::Failure;
use super::run::result_of;
use super::style::{ERROR, GOOD, STRONG, paint};
use crate::run;
use crate::run::named::run_folder;
use crate::run::reproduce::{Reproduction, reproduce as train_again};

/// Arguments of `tune reproduce`.
#[derive(Debug, Args)]
pub struct ReproduceArguments {
    /// The folder of a finished run, or its adapter
    pub run: PathBuf,
    /// The folder of the new run [default: a temporary folder, kept only if the adapters differ]
    #[arg(long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
}

/// Trains a run again and compares the adapters.
pub(super) fn reproduce(
    arguments: &ReproduceArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let into = match &arguments.output {
        Some(folder) => folder.clone(),
        None => match temporary() {
            Ok(folder) => folder,
            Err(error) => {
                console.error(
                    &format!("cannot create a temporary folder: {error}"),
                    Some("name one with `--output`"),
                );
                return Ok(Exit::Resources);
            }
        },
    };
    let reproduction = train_again(&run_folder(&arguments.run), &into, &context.environment, console);
    console.quiet();
    if arguments.output.is_none() {
        // Removes an empty folder only: nothing was trained.
        let _ = std::fs::remove_dir(&into);
    }
    let throw_away = |identical: bool| {
        if arguments.output.is_none() && identical {
            // A leftover in the system's temporary folder is harmless.
            let _ = std::fs::remove_dir_all(&into);
        }
    };
    match reproduction {
        Ok(reproduction) => {
            let exit = show(&reproduction, arguments, context.signals, console)?;
            throw_away(reproduction.identical());
            Ok(exit)
        }
        Err(run::Error::Stopped) => {
            console.error("stopped before the first step; nothing was written", None);
            Ok(context.signals.exit())
        }
        Err(error) => Err(error.into()),
    }
}

fn show(
    reproduction: &Reproduction,
    arguments: &ReproduceArguments,
    signals: &Signals,
    console: &mut Console<'_>,
) -> io::Result<Exit> {
    let Reproduction { outcome, expected, found, surroundings } = reproduction;
    let differs: Vec<String> = surroundings.iter().map(ToString::to_string).collect();
    let mut result = result_of(outcome);
    if let Some(result) = result.as_object_mut() {
        result.insert("identical".into(), reproduction.identical().into());
        result.insert("expected_sha256".into(), expected.as_str().into());
        result.insert("found_sha256".into(), json!(found));
        result.insert("surroundings".into(), json!(differs));
    }
    console.event("result", &result);
    let Some(found) = found else {
        console.error("stopped before the end; there is no adapter to compare", None);
        return Ok(signals.exit());
    };
    let run = arguments.run.display();
    if reproduction.identical() {
        if !console.json() {
            let out = console.out();
            writeln!(
                out,
                "\n{} the new adapter equals that of {run}, byte for byte",
                paint(GOOD, "identical:")
            )?;
            writeln!(out, "{} {found}", paint(STRONG, "sha256"))?;
        }
        return Ok(Exit::Done);
    }
    let reasons = match differs.as_slice() {
        [] => "inputs, program and processor are the same: please report this as a bug".to_owned(),
        differs => format!("these differ from the run:\n  {}", differs.join("\n  ")),
    };
    let compare = format!("both runs are kept: {run} and {}; {reasons}", outcome.output_dir.display());
    if !console.json() {
        let out = console.out();
        writeln!(out, "\n{} {expected}  {run}", paint(STRONG, "sha256"))?;
        writeln!(out, "{} {found}  {}", paint(ERROR, "sha256"), outcome.output_dir.display())?;
    }
    console.error("the adapters differ", Some(&compare));
    Ok(Exit::Other)
}

/// A new folder that only this user can read.
fn temporary() -> io::Result<PathBuf> {
    let base = std::env::temp_dir();
    for number in 0..100 {
        let folder = base.join(format!("tune-reproduce-{}-{number}", process::id()));
        #[cfg_attr(not(unix), expect(unused_mut, reason = "only Unix has a mode to set"))]
        let mut builder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created.map(|()| folder),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
