//! Exit codes: what a script or a CI job can tell apart.

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Any error that has no code of its own.
    Other = 1,
    /// The command line or the recipe, missing files included.
    Recipe = 2,
    /// The data.
    Data = 3,
    /// Memory, disk or device.
    Resources = 4,
    /// The loss or a gradient is not finite.
    Diverged = 5,
    /// The adapter is on disk, and a gate of the recipe is not met.
    Gate = 6,
    /// SIGINT, with a checkpoint.
    Interrupted = 130,
    /// SIGTERM, with a checkpoint.
    Terminated = 143,
}

impl Exit {
    /// One word for programs.
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
