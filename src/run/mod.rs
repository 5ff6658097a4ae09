//! The use-cases behind the commands: each opens what a recipe names, does one thing, and returns what came of it.

pub mod adapters;
pub mod bench;
pub mod doctor;
pub mod evaluate;
pub mod fine_tune;
pub mod gguf;
pub mod held_out;
pub mod inference;
mod inputs;
pub mod inspect;
pub mod open;
mod plan;
pub mod prompts;
mod provenance;
pub mod quantize;
pub mod reproduce;
mod resume;
mod sample;
mod survey;
pub mod validate;
mod verdict;

use std::path::{Path, PathBuf};

pub use fine_tune::{Options, Outcome, fine_tune};

use crate::device::{Device, Failed, Unavailable};
use crate::model::FloatDtype;
use crate::train::divergence::Fault;
use crate::train::error::FitError;
use crate::train::folder::FolderError;
use crate::train::memory::DoesNotFit;
use crate::train::pieces::TooLargeAPiece;
use crate::{adapter, assets, checkpoint, data, export, files, generate, model, recipe, record};

/// What a use-case takes from its surroundings instead of looking for it.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// The folder that holds the `models--…` entries of the Hugging Face cache.
    pub hub_cache: &'a Path,
    /// Asked again and again: should the work stop?
    pub stop: &'a dyn Fn() -> bool,
}

/// Why a use-case did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is wrong with the recipe, or with what it names.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    /// Something is wrong with the examples.
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
    /// There is nothing to compare two models on.
    #[error("no rows to compare the merged model on: {origin}; name a file of prompts (`--prompts`)")]
    NoRows {
        /// Where rows were looked for.
        origin: String,
    },
    /// A sample could not be generated.
    #[error(transparent)]
    Generate(#[from] generate::Error),
    /// Parts that a command was given do not go together.
    #[error("{0}")]
    Choice(String),
    /// A line of a file of prompts cannot be asked.
    #[error("{place}: {message}")]
    Prompt {
        /// File and line.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// The loss of a row is not finite.
    #[error("{place}: the loss is {value}: the weights of the base, or the adapter's, are damaged")]
    NotFinite {
        /// The row.
        place: String,
        /// What came out.
        value: f64,
    },
    /// Whoever hears what is said cannot be reached.
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
    /// A bench of a model that is not known by name.
    #[error("no shape is called `{0}`; there are {names}", names = model::shapes::names().collect::<Vec<_>>().join(", "))]
    UnknownShape(String),
    /// More memory is needed than there is.
    #[error(transparent)]
    Memory(#[from] DoesNotFit),
    /// A tensor is larger than any buffer of the device.
    #[error(transparent)]
    Piece(#[from] TooLargeAPiece),
    /// A model to be asked needs more memory than there is.
    #[error(transparent)]
    TooLarge(#[from] generate::memory::DoesNotFit),
    /// The device that is asked for cannot be used.
    #[error(transparent)]
    Device(#[from] Unavailable),
    /// Times by kernel are a GPU's.
    #[error("the time of each kernel is measured on a GPU alone, by its own clock")]
    NoProfile,
    /// The device gave up under way.
    #[error(transparent)]
    DeviceFailed(#[from] Failed),
    /// The device does not compute in the dtype that is asked for.
    #[error("{device} cannot compute in {dtype}: it has {there}")]
    Dtype {
        /// The dtype.
        dtype: &'static str,
        /// The device.
        device: String,
        /// What it has instead.
        there: String,
    },
    /// The loss or a gradient is not finite.
    #[error("{fault}")]
    Diverged {
        /// Which step, what it was, and the rows it was made from.
        fault: Fault,
        /// The newest checkpoint, which holds what was good.
        checkpoint: Option<PathBuf>,
    },
    /// A run cannot go on as if nothing had changed.
    #[error("the run in {} was made from something else:{}", folder.display(), bullets(differences))]
    NotTheSameRun {
        /// The run folder.
        folder: PathBuf,
        /// What is different, each in words.
        differences: Vec<String>,
    },
    /// A file of the base changed under way.
    #[error("{} changed while the run was under way", path.display())]
    ChangedUnderWay {
        /// The file.
        path: PathBuf,
    },
    /// The lock or the record of a run cannot be made, read or believed.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// A run to be repeated has no finished adapter.
    #[error("{} holds no finished run: there is no adapter in it", .0.display())]
    Unfinished(PathBuf),
    /// What a run to be repeated was made of is not what it was.
    #[error("{} cannot be reproduced, its inputs have changed:\n  {}", run.display(), listed(differences))]
    Changed {
        /// The run.
        run: PathBuf,
        /// Each input that changed.
        differences: Vec<record::Difference>,
    },
    /// The work was asked to stop before anything was written.
    #[error("stopped")]
    Stopped,
    /// A part could not be opened, although nothing was found wrong.
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
            FitError::Device { device, message } => Failed::new(device, &message).into(),
            FitError::Diverged { fault, checkpoint } => Self::Diverged { fault, checkpoint },
        }
    }
}
