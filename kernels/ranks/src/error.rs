//! Why ranks cannot start, or cannot go on.

use std::time::Duration;

/// Why ranks cannot start, or cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No library could be opened.
    #[error("no MPI library found; tried:{tried}")]
    NoLibrary {
        /// Each name with the reason, one a line.
        tried: String,
    },
    /// The library lacks a function of MPI 3.
    #[error("{library} has no `{symbol}`: it is not an MPI library, or older than MPI 3")]
    NotMpi {
        /// The library that was opened.
        library: String,
        /// What it lacks.
        symbol: &'static str,
    },
    /// The launcher started more or fewer processes than the library sees.
    #[error(
        "{variable}={launched}, but {library} sees {size} process(es): the launcher belongs to another MPI than the library"
    )]
    OtherLauncher {
        /// The launcher's variable.
        variable: String,
        /// Its value.
        launched: usize,
        /// The library's own description.
        library: String,
        /// Processes that the library sees.
        size: usize,
    },
    /// MPI returned an error.
    #[error("{call} failed with code {code} ({library})")]
    Call {
        /// The function.
        call: &'static str,
        /// What it returned.
        code: i32,
        /// The library's own description.
        library: String,
    },
    /// The other ranks did not answer.
    #[error("no answer from the other ranks for {} s", .0.as_secs_f64())]
    Silent(Duration),
    /// This system has no MPI that can be used.
    #[error("ranks are not supported on this system")]
    Unsupported,
}
