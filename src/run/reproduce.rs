//! `tune reproduce`: trains a finished run again from its folder, and compares the adapters byte for byte.

use std::path::{Path, PathBuf};

use super::fine_tune::{Again, run as train_again};
use super::provenance::{ENDED_BY, STEPS};
use super::{Environment, Error, Options, Outcome};
use crate::adapter::peft;
use crate::assets::{self, SafetensorsFile};
use crate::recipe::RecipeFile;
use crate::record::{Difference, Lock, Record};
use crate::train::budget::Spent;
use crate::train::event::{Event, Observer};

/// The result of a reproduction.
#[derive(Clone, Debug)]
pub struct Reproduction {
    /// The new run.
    pub outcome: Outcome,
    /// SHA-256 of the first run's `adapter_model.safetensors`.
    pub expected: String,
    /// SHA-256 of the new run's; `None` if it was stopped before its end.
    pub found: Option<String>,
    /// Changes of version, device or processor that may explain a difference.
    pub surroundings: Vec<Difference>,
}

impl Reproduction {
    /// Whether the two adapters are equal byte for byte.
    pub fn identical(&self) -> bool {
        self.found.as_ref() == Some(&self.expected)
    }
}

/// Trains the run in the folder `run` again, into the folder `into`.
///
/// A run that `max_time` ended is replayed to its last step, because the number of steps in that time varies between
/// machines.
///
/// # Errors
/// Before training, [`Error::Unfinished`] if the run has no adapter, and [`Error::Changed`] if the adapter or an input
/// differs from the record or the lock; then those of [`fine_tune`](super::fine_tune::fine_tune).
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
    let file = RecipeFile::open(&recipe, std::slice::from_ref(&output_dir))?;
    // A replaced adapter cannot be compared.
    let time_spent_after = if recorded == expected { time_spent_after(&tensors)? } else { None };
    let mut surroundings = Vec::new();
    let mut check = |now: &Lock| {
        let mut differences = lock.differences(now);
        if recorded != expected {
            let what = format!("the run's own adapter, {},", tensors.display());
            differences.push(Difference { what, locked: recorded.clone(), found: expected.clone() });
        }
        surroundings = lock.surroundings(now);
        match differences.is_empty() {
            true => Ok(()),
            false => Err(Error::Changed { run: run.to_path_buf(), differences }),
        }
    };
    if let Some(step) = time_spent_after {
        let text = format!(
            "`train.max_time` ended this run at step {step}: it is replayed to that step without a time limit"
        );
        observer.observe(&Event::Note(text));
    }
    let again = Again { check: &mut check, time_spent_after };
    let outcome = train_again(file, environment, Options::default(), Some(again), observer)?;
    let digest = |adapter: &PathBuf| assets::folder::digest(&adapter.join(peft::TENSORS_FILE));
    let found = outcome.adapter.as_ref().map(digest).transpose()?.map(|digest| digest.sha256);
    Ok(Reproduction { outcome, expected, found, surroundings })
}

/// The optimizer step at which `max_time` ended the run that wrote these tensors, if it did.
fn time_spent_after(tensors: &Path) -> Result<Option<u64>, Error> {
    let file = SafetensorsFile::open(tensors)?;
    let metadata = file.metadata();
    let is_ended_by_time = metadata.get(ENDED_BY).is_some_and(|key| key == Spent::Time.key());
    Ok(metadata.get(STEPS).filter(|_| is_ended_by_time).and_then(|steps| steps.parse().ok()))
}
