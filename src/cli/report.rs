//! Prints errors: one line and a remedy, or a recipe's problems with excerpts of its text. A command in backticks or on
//! a line of its own is never broken.

use std::io::{ErrorKind, IsTerminal, Write};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use textwrap::{WordSeparator, WordSplitter};
use tune_ranks::Error as Ranks;

use super::exit::Exit;
use super::shown::Shown;
use super::style::{ERROR, STRONG, breakable, colored_errors, error_width, paint, visible, wrapped};
use crate::adapter;
use crate::assets;
use crate::checkpoint;
use crate::data::{self, source};
use crate::device::Failed;
use crate::export;
use crate::files::{self, Action};
use crate::model;
use crate::record;
use crate::run;
use crate::train::folder::FolderError;
use crate::train::team::TeamError;

/// Widest line of an excerpt.
const WIDTH: usize = 100;

/// Prints `error: …`, and `help: …` below it if there is a remedy.
pub(super) fn error(message: &str, help: Option<&str>) {
    let mut stderr = anstream::stderr().lock();
    // If standard error is closed, the exit code still shows what happened.
    let mut line = |style, name: &str, text: &str| {
        let text = wrapped(&format!("{} {}", paint(style, name), visible(text)), error_width(), "  ");
        let _ = writeln!(stderr, "{text}");
    };
    line(ERROR, "error:", message);
    if let Some(help) = help {
        line(STRONG, "help:", help);
    }
}

/// Prints a diagnostic with its excerpts; colour and box drawing only on a terminal.
pub(super) fn diagnostic(problem: &dyn Diagnostic) {
    let theme = match (std::io::stderr().is_terminal(), colored_errors()) {
        (true, true) => GraphicalTheme::unicode(),
        (true, false) => GraphicalTheme::unicode_nocolor(),
        (false, _) => GraphicalTheme::none(),
    };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(error_width().unwrap_or(WIDTH).clamp(40, WIDTH))
        .with_break_words(false)
        .with_word_separator(WordSeparator::AsciiSpace)
        .with_word_splitter(WordSplitter::NoHyphenation)
        .with_links(false);
    let mut text = String::new();
    if handler.render_report(&mut text, &Shown::of(problem)).is_err() {
        text = problem.to_string();
    }
    let _ = writeln!(std::io::stderr().lock(), "{}", breakable(text.trim_end()));
}

/// The remedy for a failure, if its message does not contain one.
pub(super) fn way_out(failure: &run::Error) -> Option<String> {
    let help = match failure {
        run::Error::Diverged { checkpoint, .. } => {
            let kept = checkpoint.as_ref().map_or_else(
                || "there is no checkpoint yet".to_owned(),
                |path| format!("the last good state is in {}", path.display()),
            );
            return Some(format!(
                "{kept}. Lower `train.learning_rate` or set `train.max_grad_norm`; `train.on_divergence = \"skip\"` skips \
                 single bad steps. Inspect the rows"
            ));
        }
        run::Error::NotTheSameRun { .. } => {
            "undo the change, start a new run with `--set output_dir=\"…\"`, or continue anyway with \
             `--resume --accept-changes`"
        }
        run::Error::Device(unavailable) => return Some(unavailable.help()),
        run::Error::Memory(error) => return Some(error.ways.join("; or ")),
        run::Error::DeviceFailed(Failed::OutOfMemory { .. }) => {
            "`--fit` chooses micro-batches that fit, and a lower `train.memory_budget` leaves more memory free; `--resume` \
             continues from the newest checkpoint"
        }
        run::Error::DeviceFailed(Failed::Broken { .. }) => {
            "test the device with `tune doctor`; `--resume` continues from the newest checkpoint"
        }
        run::Error::Dtype { .. } => {
            "set `model.compute_dtype` to \"auto\" or to one of those, as in `--set model.compute_dtype=f32`"
        }
        run::Error::Folder(folder) => way_out_of_folder(folder)?,
        run::Error::ChangedUnderWay { .. } => {
            "keep the base model unchanged during a run, and run again (with `--resume` if training had begun)"
        }
        run::Error::Changed { .. } => "restore the inputs, or train again with `tune run`",
        run::Error::Team(TeamError::Ranks(error)) => way_out_of_ranks(error)?,
        run::Error::Team(TeamError::OtherBuild { .. }) => "start the same file of tune on every machine",
        run::Error::Team(TeamError::Drifted { .. }) => {
            "use the same processors or GPUs, with the same driver, on every machine"
        }
        run::Error::Unfinished(_) => "name the folder of a finished run",
        run::Error::Export(export::Error::WrongBase { overridable: true, .. }) => {
            "name the right base with `--base`, or add `--allow-other-base` if you are sure that this one fits"
        }
        failure if is_occupied(failure) => "add `--overwrite` to replace it, or choose another folder",
        run::Error::Export(export::Error::DifferentBases { .. }) => {
            "add `--allow-other-base` if you are sure that they have the same base"
        }
        _ => return None,
    };
    Some(help.to_owned())
}

/// Prints why a use case failed, and returns its exit code.
pub(super) fn failure(failure: &run::Error) -> Exit {
    match failure {
        run::Error::Recipe(problems) => diagnostic(problems),
        _ => error(&failure.to_string(), way_out(failure).as_deref()),
    }
    exit(failure)
}

/// The exit code of a failure.
pub(super) fn exit(failure: &run::Error) -> Exit {
    match failure {
        failure if is_of_something_missing(failure) || is_occupied(failure) => Exit::Recipe,
        run::Error::Recipe(_)
        | run::Error::Choice(_)
        | run::Error::Dtype { .. }
        | run::Error::UnknownShape(_)
        | run::Error::NoProfile
        | run::Error::NotTheSameRun { .. }
        | run::Error::Changed { .. }
        | run::Error::Unfinished(_)
        | run::Error::Adapter(adapter::Error::NotAnAdapter { .. })
        | run::Error::Export(export::Error::Adapter(adapter::Error::NotAnAdapter { .. }))
        | run::Error::Record(record::Error::Damaged { .. }) => Exit::Recipe,
        run::Error::Record(record::Error::File(files::Error::Io { action: Action::Read, .. })) => {
            Exit::Recipe
        }
        run::Error::Folder(
            FolderError::Occupied(_)
            | FolderError::Unfinished(_)
            | FolderError::Foreign(_)
            | FolderError::InUse(_),
        ) => Exit::Recipe,
        run::Error::Checkpoint(checkpoint::Error::DoesNotFit { .. }) => Exit::Recipe,
        run::Error::Folder(FolderError::NoneUsable { .. }) => Exit::Other,
        // The row is named on the command line.
        run::Error::Data(data::error::Error::NoSuchRow { .. }) => Exit::Recipe,
        // A thread that cannot be started is a lack of memory.
        run::Error::Data(data::error::Error::Threads { .. }) => Exit::Resources,
        run::Error::Data(_) | run::Error::Prompt { .. } => Exit::Data,
        run::Error::Diverged { .. } | run::Error::NotFinite { .. } => Exit::Diverged,
        run::Error::Model(
            model::Error::LayerReader { .. } | model::Error::Device { .. } | model::Error::SavedInput { .. },
        ) => Exit::Resources,
        // A disk that fails; what is missing was found above.
        run::Error::Model(model::Error::Assets(
            assets::Error::Io { .. } | assets::Error::Truncated { .. },
        )) => Exit::Resources,
        run::Error::Team(TeamError::Elsewhere { exit, .. }) => Exit::of(*exit),
        run::Error::Team(
            TeamError::Ranks(Ranks::Silent(_) | Ranks::Call { .. }) | TeamError::Drifted { .. },
        ) => Exit::Resources,
        run::Error::Team(TeamError::Ranks(_) | TeamError::OtherBuild { .. }) => Exit::Recipe,
        run::Error::Memory(_)
        | run::Error::Device(_)
        | run::Error::Piece(_)
        | run::Error::DeviceFailed(_)
        | run::Error::File(_)
        | run::Error::Folder(_)
        | run::Error::Checkpoint(_)
        | run::Error::Record(record::Error::File(_))
        | run::Error::Adapter(adapter::Error::Write(_))
        | run::Error::Export(export::Error::File(_) | export::Error::Adapter(adapter::Error::Write(_))) => {
            Exit::Resources
        }
        _ => Exit::Other,
    }
}

/// Whether the output folder of a command exists and is not empty.
fn is_occupied(failure: &run::Error) -> bool {
    use adapter::Error::Write;
    matches!(
        failure,
        run::Error::File(files::Error::NotEmpty { .. })
            | run::Error::Adapter(Write(files::Error::NotEmpty { .. }))
            | run::Error::Export(
                export::Error::File(files::Error::NotEmpty { .. })
                    | export::Error::Adapter(Write(files::Error::NotEmpty { .. }))
            )
    )
}

/// Whether the command line or recipe names a missing file, folder or model, or an impossible dataset.
fn is_of_something_missing(failure: &run::Error) -> bool {
    match failure {
        run::Error::Model(model::Error::Assets(error))
        | run::Error::Export(export::Error::Model(model::Error::Assets(error))) => {
            matches!(error, assets::Error::BaseNotFound { .. } | assets::Error::MissingFile { .. })
        }
        run::Error::File(files::Error::Io { action: Action::Read, source, .. }) => {
            source.kind() == ErrorKind::NotFound
        }
        run::Error::Data(data::error::Error::Source(error)) => matches!(
            error,
            source::Error::NoSuchFile { .. }
                | source::Error::NoMatch { .. }
                | source::Error::Pattern { .. }
                | source::Error::UnknownKind { .. }
        ),
        _ => false,
    }
}

/// The remedy for ranks that cannot start or go on.
fn way_out_of_ranks(error: &Ranks) -> Option<&'static str> {
    Some(match error {
        Ranks::NoLibrary { .. } | Ranks::NotMpi { .. } => {
            "install Open MPI or MPICH (`apt install openmpi-bin`), load the cluster's module, or name the library with \
             `--mpi-library PATH`"
        }
        Ranks::OtherLauncher { .. } => {
            "start it with the launcher of that MPI, or name the library of the launcher's MPI with `--mpi-library PATH`"
        }
        Ranks::Silent(_) => {
            "a rank ended or the network is down; `--silence` waits longer, `--resume` continues from the newest checkpoint"
        }
        Ranks::Call { .. } => "`--resume` continues from the newest checkpoint",
        Ranks::Unsupported => return None,
    })
}

/// The remedy for an unusable run folder.
fn way_out_of_folder(error: &FolderError) -> Option<&'static str> {
    Some(match error {
        FolderError::InUse(_) => {
            "wait for that run to end, or choose another folder with `--set output_dir=\"…\"`"
        }
        FolderError::Occupied(_) => {
            "choose another folder with `--set output_dir=\"…\"`, or replace that run with `--overwrite`"
        }
        FolderError::Unfinished(_) => {
            "continue that run with `--resume`, replace it with `--overwrite`, or choose another folder with \
             `--set output_dir=\"…\"`"
        }
        FolderError::Foreign(_) => {
            "choose another folder with `--set output_dir=\"…\"`; this one is left untouched"
        }
        FolderError::NoneUsable { .. } => "start again with `--overwrite`, or in another folder",
        FolderError::File(_) => return None,
    })
}
