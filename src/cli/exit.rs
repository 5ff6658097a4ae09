//! Exit codes, for scripts and CI jobs.

use signal_hook::consts::SIGINT;

/// The exit of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Success.
    Done,
    /// Any error without its own code.
    Other,
    /// An invalid command line or recipe, or a missing file that it names.
    Recipe,
    /// Invalid data.
    Data,
    /// Memory, disk or device failed or do not suffice.
    Resources,
    /// The loss or a gradient is not finite.
    Diverged,
    /// The adapter is on disk and fails a gate of the recipe.
    Gate,
    /// A signal of this number stopped the command; a run has a checkpoint.
    Signal(u8),
}

impl Exit {
    /// The process's exit code.
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Other => 1,
            Self::Recipe => 2,
            Self::Data => 3,
            Self::Resources => 4,
            Self::Diverged => 5,
            Self::Gate => 6,
            Self::Signal(number) => 128 + number,
        }
    }

    /// The exit of this code, with which another rank ends.
    pub(super) fn of(code: u8) -> Self {
        let known = [Self::Recipe, Self::Data, Self::Resources, Self::Diverged, Self::Gate];
        match known.into_iter().find(|exit| exit.code() == code) {
            Some(exit) => exit,
            None if code > 128 => Self::Signal(code - 128),
            None => Self::Other,
        }
    }

    /// The `outcome` of the `end` event.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Other => "error",
            Self::Recipe => "recipe",
            Self::Data => "data",
            Self::Resources => "resources",
            Self::Diverged => "diverged",
            Self::Gate => "gate",
            Self::Signal(number) if i32::from(number) == SIGINT => "interrupted",
            Self::Signal(_) => "terminated",
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
