//! How errors look: one line with a way out, or a recipe's problems with an excerpt of its text.

use std::io::{ErrorKind, IsTerminal, Write};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};

use super::exit::Exit;
use super::style::{ERROR, STRONG, colored_errors, paint, visible};
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

/// Widest line of an excerpt.
const WIDTH: usize = 100;

/// `error: …`, and the way out below it where there is one.
pub(super) fn error(message: &str, help: Option<&str>) {
    let mut stderr = anstream::stderr().lock();
    // When nobody listens on stderr any more, the exit code still says what happened.
    let _ = writeln!(stderr, "{} {}", paint(ERROR, "error:"), visible(message));
    if let Some(help) = help {
        let _ = writeln!(stderr, "{} {}", paint(STRONG, "help:"), visible(help));
    }
}

/// A diagnostic with its excerpts; colour and box drawing only where a terminal shows them.
pub(super) fn diagnostic(problem: &dyn Diagnostic) {
    let theme = match (std::io::stderr().is_terminal(), colored_errors()) {
        (true, true) => GraphicalTheme::unicode(),
        (true, false) => GraphicalTheme::unicode_nocolor(),
        (false, _) => GraphicalTheme::none(),
    };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(WIDTH).with_links(false);
    let mut text = String::new();
    if handler.render_report(&mut text, problem).is_err() {
        text = problem.to_string();
    }
    let _ = writeln!(std::io::stderr().lock(), "{}", text.trim_end());
}

/// What to do about a failure, where there is more to say than the error does.
pub(super) fn way_out(failure: &run::Error) -> Option<String> {
    let told = match failure {
        run::Error::Diverged { checkpoint, .. } => {
            let kept = checkpoint.as_ref().map_or_else(
                || "nothing was learned yet that could be kept".to_owned(),
                |path| format!("what was learned before is in {}", path.display()),
            );
            let way_out = "a lower `train.learning_rate`, or `train.max_grad_norm`, is the usual cure, and \
                           `train.on_divergence = \"skip\"` leaves single bad steps out; look at the rows";
            return Some(format!("{kept}; {way_out}"));
        }
        run::Error::NotTheSameRun { .. } => {
            "put it back as it was; or begin a new run with `--set output_dir=\"…\"`; or, if you mean it, go on with \
             `--resume --accept-changes`"
        }
        run::Error::Device(unavailable) => return Some(unavailable.help()),
        run::Error::DeviceFailed(Failed::OutOfMemory { .. }) => {
            "`--fit` chooses micro-batches that fit, and a smaller `train.memory_budget` leaves more free; what is in the \
             newest checkpoint is not lost (`--resume`)"
        }
        run::Error::DeviceFailed(Failed::Broken { .. }) => {
            "`tune doctor` tries the device out op by op; what is in the newest checkpoint is not lost (`--resume`)"
        }
        run::Error::Dtype { .. } => {
            "leave `model.compute_dtype` at \"auto\", or choose one of those with `--set model.compute_dtype=f32`"
        }
        run::Error::Folder(folder) => way_out_of_folder(folder)?,
        run::Error::ChangedUnderWay { .. } => {
            "let nothing write to the base while it is in use, and run again (`--resume`, if the run had begun)"
        }
        run::Error::Changed { .. } => "put the inputs back as they were, or train anew with `tune run`",
        run::Error::Unfinished(_) => "name the folder of a run that came to its end",
        _ => return None,
    };
    Some(told.to_owned())
}

/// Shows why a use-case failed, and tells the exit code that belongs to it.
pub(super) fn failure(failure: &run::Error) -> Exit {
    match failure {
        run::Error::Recipe(problems) => diagnostic(problems),
        _ => error(&failure.to_string(), way_out(failure).as_deref()),
    }
    match failure {
        failure if is_of_something_missing(failure) => Exit::Recipe,
        run::Error::Recipe(_)
        | run::Error::Choice(_)
        | run::Error::Dtype { .. }
        | run::Error::UnknownShape(_)
        | run::Error::NoProfile
        | run::Error::NotTheSameRun { .. }
        | run::Error::Changed { .. }
        | run::Error::Unfinished(_)
        | run::Error::Adapter(adapter::Error::NotAnAdapter { .. })
        | run::Error::Export(
            export::Error::Adapter(adapter::Error::NotAnAdapter { .. })
            | export::Error::File(files::Error::NotEmpty { .. }),
        )
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
        // It is the command line that names a row.
        run::Error::Data(data::error::Error::NoSuchRow { .. }) => Exit::Recipe,
        // Threads that cannot be had are memory that cannot.
        run::Error::Data(data::error::Error::Threads { .. }) => Exit::Resources,
        run::Error::Data(_) | run::Error::Prompt { .. } => Exit::Data,
        run::Error::Diverged { .. } | run::Error::NotFinite { .. } => Exit::Diverged,
        run::Error::Memory(_)
        | run::Error::TooLarge(_)
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

/// The command line names a file, folder or model that is not there, or a dataset that cannot be one.
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

/// What to do about a folder that cannot be used.
fn way_out_of_folder(error: &FolderError) -> Option<&'static str> {
    Some(match error {
        FolderError::InUse(_) => "wait for it to end, or choose another folder with `--set output_dir=\"…\"`",
        FolderError::Occupied(_) => {
            "choose another folder with `--set output_dir=\"…\"`, or replace that run with `--overwrite`"
        }
        FolderError::Unfinished(_) => {
            "go on with it by `--resume`, choose another folder with `--set output_dir=\"…\"`, or replace it with \
             `--overwrite`"
        }
        FolderError::Foreign(_) => {
            "choose another folder with `--set output_dir=\"…\"`; nothing here is touched"
        }
        FolderError::NoneUsable { .. } => "begin again with `--overwrite`, or in another folder",
        FolderError::File(_) => return None,
    })
}
