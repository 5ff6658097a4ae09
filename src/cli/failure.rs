//! Why a command ended early: the use case failed, or its output cannot be written.

use std::io;

use crate::{export, files, recipe, run};

/// An error on the way through a command; [`super::main`] shows it and chooses the exit code.
pub(super) enum Failure {
    /// Standard output cannot be written.
    Output(io::Error),
    /// The use case failed.
    Run(run::Error),
}

impl Failure {
    /// Whether a signal stopped the use case.
    pub(super) fn is_stop(&self) -> bool {
        matches!(self, Self::Run(run::Error::Stopped | run::Error::Export(export::Error::Stopped)))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<run::Error> for Failure {
    fn from(error: run::Error) -> Self {
        match error {
            run::Error::Output(error) => Self::Output(error),
            error => Self::Run(error),
        }
    }
}

impl From<recipe::Error> for Failure {
    fn from(error: recipe::Error) -> Self {
        Self::Run(error.into())
    }
}

impl From<files::Error> for Failure {
    fn from(error: files::Error) -> Self {
        Self::Run(error.into())
    }
}
