//! How errors look: one line with a way out, or a recipe's problems with an excerpt of its text.

use std::io::{IsTerminal, Write};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};

use super::exit::Exit;
use super::style::{ERROR, STRONG, colored_errors, paint};
use crate::adapter;
use crate::export;
use crate::run;
use crate::train::folder::FolderError;

/// Widest line of an excerpt.
const WIDTH: usize = 100;

/// `error: …`, and the way out below it where there is one.
pub(super) fn error(message: &str, help: Option<&str>) {
    let mut stderr = anstream::stderr().lock();
    // When nobody listens on stderr any more, the exit code still says what happened.
    let _ = writeln!(stderr, "{} {message}", paint(ERROR, "error:"));
    if let Some(help) = help {
        let _ = writeln!(stderr, "{} {help}", paint(STRONG, "help:"));
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

/// Shows why a use-case failed, and tells the exit code that belongs to it.
pub(super) fn failure(failure: &run::Error) -> Exit {
    match failure {
        run::Error::Recipe(problems) => {
            diagnostic(problems);
            return Exit::Recipe;
        }
        run::Error::Diverged { checkpoint, .. } => {
            let kept = checkpoint.as_ref().map_or_else(
                || "it was the first step: nothing was learned yet".to_owned(),
                |path| format!("what was learned before is in {}", path.display()),
            );
            let way_out = "a lower `train.learning_rate`, or `train.max_grad_norm`, is the usual cure; look at the rows";
            error(&failure.to_string(), Some(&format!("{kept}; {way_out}")));
        }
        run::Error::Folder(FolderError::Occupied(_)) => error(
            &failure.to_string(),
            Some(
                "choose another folder with `--set output_dir=\"…\"`, or replace that run with `--overwrite`",
            ),
        ),
        _ => error(&failure.to_string(), None),
    }
    match failure {
        run::Error::Recipe(_) | run::Error::Folder(FolderError::Occupied(_)) => Exit::Recipe,
        run::Error::Data(_) => Exit::Data,
        run::Error::Diverged { .. } => Exit::Diverged,
        run::Error::File(_)
        | run::Error::Folder(_)
        | run::Error::Checkpoint(_)
        | run::Error::Adapter(adapter::Error::Write(_))
        | run::Error::Export(export::Error::File(_) | export::Error::Adapter(adapter::Error::Write(_))) => {
            Exit::Resources
        }
        _ => Exit::Other,
    }
}
