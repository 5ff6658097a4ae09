//! A whole recipe: the tables of all rooms put together, checked against each other and against the disk.
//!
//! A [`RecipeFile`] is the text with all its problems; a [`Recipe`] is the value of a text without any. Each room declares
//! the keys of its own table ([`crate::document::KeyTable`]); this one owns the few keys that belong to no room, what must
//! hold between tables, the overrides of the command line, and the canonical text from which a recipe's hash is made. It
//! opens no model, no tokenizer and no data.

mod canonical;
mod check;
mod device;
mod differences;
mod file;
mod files;
pub(crate) mod foreign;
mod keys;
mod overrides;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use device::{DeviceId, DeviceSpec, NoDeviceName};
pub use differences::{Difference, differences};
pub use file::{Error, Parts, RecipeFile};
pub use keys::{schema, tables};

use crate::{adapter, data, generate, model, objective, quant, train};

/// The version of the recipe format that this program reads.
pub const VERSION: u32 = 1;

/// Everything that decides a run. Every value is written out; no default is left to be taken later.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The run folder.
    pub output_dir: PathBuf,
    /// Seeds the adapter, the order of the data, the held-out rows and dropout.
    pub seed: u64,
    /// What the run computes on.
    pub device: DeviceSpec,
    /// The base model.
    pub model: model::spec::Spec,
    /// How the frozen projections are stored; `None`: as dense as they are.
    pub quantization: Option<quant::spec::Quantization>,
    /// The adapter.
    pub adapter: adapter::spec::Spec,
    /// What is minimised.
    pub objective: objective::Objective,
    /// How examples become sequences. Its `train_on` is always `None`: it has moved into the datasets.
    pub data: data::spec::Spec,
    /// The datasets, at least one of them trained on. `train_on` is set wherever it applies.
    pub datasets: Vec<data::spec::DatasetSpec>,
    /// The loop.
    pub train: train::spec::Spec,
    /// What the held-out loss must be.
    pub gate: train::gate::Spec,
    /// What is asked before and after.
    pub sample: generate::spec::Spec,
}

impl Recipe {
    /// How quantized projections are stored; `None`: there are none.
    pub fn blocks(&self) -> Option<quant::spec::Spec> {
        self.quantization.as_ref().map(|quantization| quantization.blocks)
    }
}
