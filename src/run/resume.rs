//! Where a run in a folder starts: at its first step, at a checkpoint, or not at all because it is finished.
//!
//! A checkpoint records the inputs of its run. A change that would give another adapter is refused and named, unless
//! the user accepts changes; then the adapter records them.

use std::io::ErrorKind;

use super::inputs::{self, Inputs};
use super::open::Opened;
use super::provenance::STEPS;
use super::{Error, Options};
use crate::adapter::peft;
use crate::assets::SafetensorsFile;
use crate::files;
use crate::recipe;
use crate::record::{self, Lock};
use crate::train::event::{Event, Observer};
use crate::train::folder::{FolderError, RunFolder, Standing};
use crate::train::resume::{Found, find};
use crate::train::state::{Origin, Saved, State};

/// Where a run starts.
pub(super) enum Beginning {
    /// It is finished, and its adapter is on disk.
    Finished(State),
    /// Steps remain.
    Trains {
        /// The checkpoint to continue from; `None`: start at the first step.
        saved: Option<Saved>,
        /// Whether inputs have changed since that checkpoint.
        is_changed: bool,
    },
}

const FRESH: Beginning = Beginning::Trains { saved: None, is_changed: false };

/// Decides from the folder's contents, without changing them.
pub(super) fn beginning(
    folder: &RunFolder,
    opened: &Opened,
    origin: &Origin,
    options: Options,
    observer: &mut dyn Observer,
) -> Result<Beginning, Error> {
    let mut note = |text: String| observer.observe(&Event::Note(text));
    if !options.resume {
        folder.require_free(options.overwrite)?;
        return Ok(FRESH);
    }
    let root = folder.root().display();
    let standing = folder.standing()?;
    match standing {
        Standing::Empty => {
            note(format!("no run to resume in {root}: starting at the first step"));
            return Ok(FRESH);
        }
        Standing::Foreign => return Err(FolderError::Foreign(folder.root().to_path_buf()).into()),
        Standing::Unfinished | Standing::Finished => {}
    }
    let Found { saved, passed_over } = find(folder)?;
    let Some(mut saved) = saved else {
        if standing == Standing::Finished {
            return Err(FolderError::Occupied(folder.root().to_path_buf()).into());
        }
        let differences = differences_without_checkpoint(folder, origin, opened);
        if !differences.is_empty() && !options.accept_changes {
            return Err(Error::NotTheSameRun { folder: folder.root().to_path_buf(), differences });
        }
        for difference in differences {
            observer.observe(&Event::Warning(format!("changed before the first step: {difference}")));
        }
        observer.observe(&Event::Note(format!(
            "the run in {root} has no checkpoint yet: starting at the first step"
        )));
        return Ok(FRESH);
    };
    for fault in &passed_over {
        observer.observe(&Event::Warning(format!("skipping an unusable checkpoint: {fault}")));
    }
    let state = &mut saved.state;
    if state.origin.release != origin.release {
        observer.observe(&Event::Warning(format!(
            "the run was started by tune {} and continues with tune {}; the adapter may differ",
            state.origin.release, origin.release
        )));
    }
    let differences = differences(&state.origin, state.tokens, origin, opened);
    let is_changed = !differences.is_empty();
    if is_changed && !options.accept_changes {
        return Err(Error::NotTheSameRun { folder: folder.root().to_path_buf(), differences });
    }
    let mut changes = std::mem::take(&mut state.origin.changes);
    for difference in differences {
        let change = format!("after step {}: {difference}", state.step);
        observer.observe(&Event::Warning(format!("changed {change}")));
        changes.push(change);
    }
    state.origin = Origin { changes, ..origin.clone() };
    if standing == Standing::Finished {
        let steps = adapter_steps(folder);
        if !is_changed && steps == Some(state.step) && state.ended(&opened.recipe.train.budget).is_some() {
            return Ok(Beginning::Finished(saved.state));
        }
        let of = steps.map(|steps| format!(" of step {steps}")).unwrap_or_default();
        observer.observe(&Event::Note(format!(
            "{} contains an adapter{of}; it is replaced when the run ends",
            folder.adapter().display()
        )));
    }
    Ok(Beginning::Trains { saved: Some(saved), is_changed })
}

/// Uses the micro-batches that `--fit` chose for the run in `folder`, if they give the same optimizer steps as the
/// recipe's. [`beginning`] reports other differences.
pub(super) fn adopt_micro_batches(opened: &mut Opened, folder: &RunFolder) -> bool {
    let Ok(file) = recipe::RecipeFile::open(&folder.recipe(), &[]) else { return false };
    let Some(fitted) = &file.parts().train else { return false };
    let train = &mut opened.recipe.train;
    let asked = train.micro_batch_size * train.gradient_accumulation_steps;
    if fitted.micro_batch_size.checked_mul(fitted.gradient_accumulation_steps) != Some(asked) {
        return false;
    }
    train.micro_batch_size = fitted.micro_batch_size;
    train.gradient_accumulation_steps = fitted.gradient_accumulation_steps;
    true
}

/// The changes since a run was started that has a recipe and a lock but no checkpoint.
fn differences_without_checkpoint(folder: &RunFolder, origin: &Origin, opened: &Opened) -> Vec<String> {
    let mut found = Vec::new();
    let was = recipe::RecipeFile::open(&folder.recipe(), &[]);
    let recipe = match was.map(recipe::RecipeFile::finish) {
        Ok(Ok(was)) => was.essentials(),
        Ok(Err(_)) | Err(_) => {
            found.push(format!("{} is no longer a valid recipe", folder.recipe().display()));
            origin.recipe.clone()
        }
    };
    // The lock is written after the recipe; a run killed in between has read no input yet.
    let lock = match Lock::read(folder.root()) {
        Ok(lock) => Some(lock),
        Err(record::Error::File(files::Error::Io { source, .. })) if source.kind() == ErrorKind::NotFound => {
            None
        }
        Err(error) => {
            found.push(error.to_string());
            None
        }
    };
    let was = match lock {
        Some(lock) => Origin {
            recipe,
            inputs: inputs::hashes_of(&lock),
            compute: compute(&lock.compute.dtype, &lock.compute.device),
            ..Origin::default()
        },
        None => Origin { recipe, ..origin.clone() },
    };
    // The provenance of a base is part of its files.
    let mut is = origin.clone();
    is.inputs.retain(|name, _| was.inputs.contains_key(name) || !inputs::is_said_by_base(name));
    found.extend(differences(&was, 0, &is, opened));
    found
}

/// The changes that would give another adapter after this many tokens, in words.
fn differences(was: &Origin, tokens: u64, origin: &Origin, opened: &Opened) -> Vec<String> {
    let max_tokens = opened.recipe.train.budget.max_tokens;
    let mut found: Vec<String> = recipe::differences(&was.recipe, &origin.recipe)
        .into_iter()
        // A later end does not change earlier steps.
        .filter(|d| d.key != "train.max_tokens" || max_tokens.is_some_and(|limit| limit <= tokens))
        .map(|difference| difference.to_string())
        .collect();
    let datasets: Vec<String> = opened.recipe.datasets.iter().map(|dataset| dataset.path.clone()).collect();
    found.extend(inputs::differences(&was.inputs, &origin.inputs, &datasets));
    if was.compute != origin.compute {
        found.push(format!("it was computed in {} and would continue in {}", was.compute, origin.compute));
    }
    found
}

/// The optimizer steps of the adapter in the folder, if there is one that records them.
fn adapter_steps(folder: &RunFolder) -> Option<u64> {
    let file = SafetensorsFile::open(&folder.adapter().join(peft::TENSORS_FILE)).ok()?;
    file.metadata().get(STEPS)?.parse().ok()
}

/// Compute dtype and device, in words.
pub(super) fn compute(dtype: &str, device: &str) -> String {
    format!("{dtype} on {device}")
}

/// The inputs of a run of `opened`.
pub(super) fn origin(opened: &Opened, inputs: &Inputs, compute: &str) -> Origin {
    Origin {
        recipe: opened.recipe.essentials(),
        inputs: inputs.hashes().clone(),
        compute: compute.to_owned(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        changes: Vec::new(),
    }
}
