//! Exit codes, for scripts and CI jobs.

/// The exit of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Done = 0,
    /// Any error without its own code.
    Other = 1,
    /// An invalid command line or recipe, or a missing file that it names.
    Recipe = 2,
    /// Invalid data.
    Data = 3,
    /// Memory, disk or device failed or do not suffice.
    Resources = 4,
    /// The loss or a gradient is not finite.
    Diverged = 5,
    /// The adapter is on disk and fails a gate of the recipe.
    Gate = 6,
    /// SIGINT, with a checkpoint.
    Interrupted = 130,
    /// SIGTERM, with a checkpoint.
    Terminated = 143,
}

impl Exit {
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
            Self::Interrupted => "interrupted",
            Self::Terminated => "terminated",
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
