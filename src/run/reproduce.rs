//! `tune reproduce`: train a finished run again from what its folder holds, and compare the adapters byte for byte.

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
/// A run that its `max_time` ended is replayed to the step it came to: another machine, or this one on another day,
/// would come to another step in that time.
///
/// # Errors
/// [`Error::Unfinished`] and [`Error::Changed`] before anything is trained: the run has no adapter, its adapter is not
/// the one that it wrote, or an input is not what the lock says. Afterwards what
/// [`fine_tune`](super::fine_tune::fine_tune) returns.
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
    // An adapter that is not the run's own says nothing about the run.
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
            "`train.max_time` ended this run behind step {step}: it is replayed to that step, however long it takes"
        );
        observer.observe(&Event::Note(text));
    }
    let again = Again { check: &mut check, time_spent_after };
    let outcome = train_again(file, environment, Options::default(), Some(again), observer)?;
    let digest = |adapter: &PathBuf| assets::folder::digest(&adapter.join(peft::TENSORS_FILE));
    let found = outcome.adapter.as_ref().map(digest).transpose()?.map(|digest| digest.sha256);
    Ok(Reproduction { outcome, expected, found, surroundings })
}

/// The optimizer step behind which `max_time` was spent, where it ended the run that wrote these tensors.
fn time_spent_after(tensors: &Path) -> Result<Option<u64>, Error> {
    let file = SafetensorsFile::open(tensors)?;
    let metadata = file.metadata();
    let is_ended_by_time = metadata.get(ENDED_BY).is_some_and(|key| key == Spent::Time.key());
    Ok(metadata.get(STEPS).filter(|_| is_ended_by_time).and_then(|steps| steps.parse().ok()))
}
