//! The use cases behind the commands: each opens the files that a recipe names, does one thing, and returns its result.

pub mod adapters;
mod advice;
mod agreement;
mod arithmetic;
pub mod bench;
pub mod doctor;
pub mod evaluate;
pub mod fidelity;
pub mod fine_tune;
pub mod forecast;
pub mod gguf;
pub mod held_out;
pub mod inference;
pub mod init;
mod inputs;
pub mod inspect;
pub mod named;
pub mod open;
mod packed;
mod plan;
pub mod prompts;
mod provenance;
pub mod quantize;
mod random_base;
pub mod reproduce;
mod resume;
mod sample;
mod survey;
mod training;
pub mod validate;
mod verdict;

use std::path::{Path, PathBuf};

pub use fine_tune::{Options, Outcome, fine_tune, fine_tune_together};

use crate::device::{Device, Failed, Unavailable};
use crate::model::FloatDtype;
use crate::train::divergence::Fault;
use crate::train::error::FitError;
use crate::train::folder::FolderError;
use crate::train::memory::DoesNotFit;
use crate::train::pieces::TooLargeAPiece;
use crate::train::team::TeamError;
use crate::{adapter, assets, checkpoint, data, export, files, generate, model, recipe, record};

/// What a use case needs from the process that it runs in.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// The folder of the `models--…` entries of the Hugging Face cache.
    pub hub_cache: &'a Path,
    /// Polled during work; true asks it to stop.
    pub stop: &'a dyn Fn() -> bool,
    /// Polled after each optimizer step; true asks for a checkpoint. Training continues.
    pub save: &'a dyn Fn() -> bool,
}

/// Why a use case failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe, or a file that it names, has problems.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    /// The examples have problems.
    #[error(transparent)]
    Data(#[from] data::error::Error),
    /// The base model cannot be used.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The adapter cannot be read or written.
    #[error(transparent)]
    Adapter(#[from] adapter::Error),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The run folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A checkpoint could not be written.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// An adapter could not be merged or exported.
    #[error(transparent)]
    Export(#[from] export::Error),
    /// There are no rows to compare two models on.
    #[error("no rows to compare the merged model on: {origin}; add `--prompts FILE`")]
    NoRows {
        /// Where rows were searched.
        origin: String,
    },
    /// A sample could not be generated.
    #[error(transparent)]
    Generate(#[from] generate::Error),
    /// The arguments of a command do not fit together.
    #[error("{0}")]
    Choice(String),
    /// A line of a file of prompts is invalid.
    #[error("{place}: {message}")]
    Prompt {
        /// File and line.
        place: String,
        /// The problem.
        message: String,
    },
    /// The loss of a row is not finite.
    #[error("{place}: the loss is {value}; the weights of the base or the adapter are damaged")]
    NotFinite {
        /// The row.
        place: String,
        /// The loss.
        value: f64,
    },
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
    /// The bench has no model shape of this name.
    #[error("unknown shape `{0}`; available: {names}", names = model::shapes::names().collect::<Vec<_>>().join(", "))]
    UnknownShape(String),
    /// A run or a model needs more memory than its budget.
    #[error(transparent)]
    Memory(#[from] DoesNotFit),
    /// A tensor is larger than the device's largest buffer.
    #[error(transparent)]
    Piece(#[from] TooLargeAPiece),
    /// The requested device is unusable.
    #[error(transparent)]
    Device(#[from] Unavailable),
    /// Profiling needs a GPU.
    #[error("`--profile` needs a GPU: kernels are timed by its clock")]
    NoProfile,
    /// The device failed during work.
    #[error(transparent)]
    DeviceFailed(#[from] Failed),
    /// The device does not support the requested dtype.
    #[error("{device} does not support {dtype}; it supports {there}")]
    Dtype {
        /// The dtype.
        dtype: &'static str,
        /// The device.
        device: String,
        /// The supported dtypes.
        there: String,
    },
    /// The loss or a gradient is not finite.
    #[error("{fault}")]
    Diverged {
        /// The step, the value, and the rows of the step.
        fault: Fault,
        /// The newest checkpoint, from before the divergence.
        checkpoint: Option<PathBuf>,
    },
    /// The ranks cannot start, or cannot go on together.
    #[error(transparent)]
    Team(#[from] TeamError),
    /// The inputs of a resumed run have changed.
    #[error("the inputs of the run in {} have changed:{}", folder.display(), bullets(differences))]
    NotTheSameRun {
        /// The run folder.
        folder: PathBuf,
        /// The differences, in words.
        differences: Vec<String>,
    },
    /// A file of the base changed during the run.
    #[error("{} changed during the run", path.display())]
    ChangedUnderWay {
        /// The file.
        path: PathBuf,
    },
    /// The lock or the record of a run cannot be written or read, or is invalid.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// A run to reproduce has no finished adapter.
    #[error("{} is not a finished run: it contains no adapter", .0.display())]
    Unfinished(PathBuf),
    /// The inputs of a run to reproduce have changed.
    #[error("cannot reproduce {}: its inputs have changed:\n  {}", run.display(), listed(differences))]
    Changed {
        /// The run.
        run: PathBuf,
        /// The inputs that changed.
        differences: Vec<record::Difference>,
    },
    /// A signal stopped the work before anything was written.
    #[error("stopped")]
    Stopped,
    /// A part could not be opened although no problem was found.
    #[error("a part of the recipe could not be opened")]
    Unopened,
}

/// # Errors
/// [`Error::Dtype`] if `device` does not compute in `dtype`.
fn require_dtype(device: &Device, dtype: FloatDtype) -> Result<(), Error> {
    match device.supports(dtype) {
        true => Ok(()),
        false => Err(Error::Dtype {
            dtype: dtype.name(),
            device: device.name(),
            there: device.dtypes().iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", "),
        }),
    }
}

impl From<data::source::Error> for Error {
    fn from(error: data::source::Error) -> Self {
        Self::Data(error.into())
    }
}

impl From<assets::Error> for Error {
    fn from(error: assets::Error) -> Self {
        Self::Model(error.into())
    }
}

fn listed(differences: &[record::Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

fn bullets(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  - {line}")).collect()
}

impl From<FitError> for Error {
    fn from(error: FitError) -> Self {
        match error {
            FitError::Data(error) => error.into(),
            FitError::Folder(error) => error.into(),
            FitError::Checkpoint(error) => error.into(),
            FitError::Adapter(error) => error.into(),
            FitError::Model(error) => error.into(),
            FitError::Team(error) => error.into(),
            FitError::Device { device, message } => Failed::new(device, &message).into(),
            FitError::Diverged { fault, checkpoint } => Self::Diverged { fault, checkpoint },
        }
    }
}
