//! `tune reproduce`: train a finished run again from what its folder holds, and compare the adapters byte for byte.

use std::path::{Path, PathBuf};

use super::open::open;
use super::{Environment, Error, Options, Outcome, fine_tune};
use crate::adapter::peft;
use crate::assets;
use crate::device::Device;
use crate::recipe::RecipeFile;
use crate::record::{Difference, Lock, Record};
use crate::train::event::Observer;

/// What came of training again.
#[derive(Clone, Debug)]
pub struct Reproduction {
    /// The new run.
    pub outcome: Outcome,
    /// SHA-256 of the first run's `adapter_model.safetensors`, as it lies in its folder.
    pub expected: String,
    /// SHA-256 of the new run's; `None` when it was stopped before its end.
    pub found: Option<String>,
    /// What is not an input, is not as it was, and may explain a difference.
    pub surroundings: Vec<Difference>,
}

impl Reproduction {
    /// Whether the two adapters have the same bytes.
    pub fn identical(&self) -> bool {
        self.found.as_ref() == Some(&self.expected)
    }
}

/// Trains the run in the folder `run` again, into the folder `into`.
///
/// # Errors
/// [`Error::Unfinished`] and [`Error::Changed`] before anything is trained: the run has no adapter, its adapter is not
/// the one that it wrote, or an input is not what the lock says. What [`fine_tune`] returns afterwards.
pub fn reproduce(
    run: &Path,
    into: &Path,
    environment: &Environment<'_>,
    observer: &mut dyn Observer,
) -> Result<Reproduction, Error> {
    let lock = Lock::read(run)?;
    let recorded = Record::read(run)?.adapter_sha256.ok_or_else(|| Error::Unfinished(run.to_path_buf()))?;
    let tensors = run.join("adapter").join(peft::TENSORS_FILE);
    if !tensors.is_file() {
        return Err(Error::Unfinished(run.to_path_buf()));
    }
    let expected = assets::folder::digest(&tensors)?.sha256;

    let recipe = run.join("recipe.toml");
    let output_dir = format!("output_dir={}", toml::Value::String(into.display().to_string()));
    let file = || RecipeFile::open(&recipe, std::slice::from_ref(&output_dir));
    let opened = open(file()?, environment)?;
    let device = Device::choose(opened.recipe.device)?;
    let now = opened.lock(&device, opened.compute_dtype(&device)?)?;
    drop(opened);
    let mut differences = lock.differences(&now);
    if recorded != expected {
        let what = format!("the run's own adapter, {},", tensors.display());
        differences.push(Difference { what, locked: recorded, found: expected.clone() });
    }
    if !differences.is_empty() {
        return Err(Error::Changed { run: run.to_path_buf(), differences });
    }

    let outcome = fine_tune(file()?, environment, Options::default(), observer)?;
    let digest = |adapter: &PathBuf| assets::folder::digest(&adapter.join(peft::TENSORS_FILE));
    let found = outcome.adapter.as_ref().map(digest).transpose()?.map(|digest| digest.sha256);
    Ok(Reproduction { outcome, expected, found, surroundings: lock.surroundings(&now) })
}
