//! The packed base of a run that fetches layers from disk: `<output_dir>/base-packed/`, written once, before loading, and
//! found again by its hashes.
//!
//! A base that is stored in 4 bits, or that is not quantized, is read where it lies.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Environment;
use super::Error;
use super::inputs::Inputs;
use super::open::Opened;
use crate::assets::folder::digest;
use crate::assets::{ModelDir, WeightFiles};
use crate::export::base::{ORIGINAL_HASH_PREFIX, ORIGINAL_QUANTIZATION_KEY, OpenedBase};
use crate::export::quantize::{self, Options};
use crate::export::shards::SHARD_BYTES;
use crate::files::{self, Existing};
use crate::model::tensors;
use crate::quant::spec::Quantization;
use crate::train::event::{Event, Observer};
use crate::train::folder::{PACKED, RunFolder};
use crate::train::memory::Workload;
use crate::units::Bytes;

/// The list of the files that were written, in the folder.
const LIST: &str = "packed.json";
/// Space for headers and small files.
const MARGIN: u64 = 16 << 20;

#[derive(Debug, Deserialize, Serialize)]
struct Listed {
    name: String,
    bytes: u64,
    sha256: String,
}

/// The packed base that a run left in its folder, if there is one.
pub(super) fn folder_in(run: &Path) -> Option<PathBuf> {
    Some(run.join(PACKED)).filter(|folder| folder.is_dir())
}

/// Whether layers are fetched from a packed base, since the base's own files do not have them in 4 bits.
///
/// # Errors
/// The base does not have the model's tensors.
pub(super) fn is_needed(opened: &Opened) -> Result<bool, Error> {
    let Some(blocks) = opened.recipe.blocks() else { return Ok(false) };
    let checked = tensors::check(&opened.spec, opened.model.weights(), Some(blocks))?;
    Ok(checked.quantized.is_empty())
}

/// The folder to fetch layers from, where [`is_needed`] says so; written if it is not there or cannot be used.
///
/// # Errors
/// The disk has no room for it, it cannot be written, or `stop` returned true.
pub(super) fn ready(
    opened: &Opened,
    inputs: &Inputs,
    folder: &RunFolder,
    workload: &Workload<'_>,
    environment: &Environment<'_>,
    observer: &mut dyn Observer,
) -> Result<Option<PathBuf>, Error> {
    let Some(quantization) = &opened.recipe.quantization else { return Ok(None) };
    let path = folder.packed_base();
    match fault(&path, quantization, inputs) {
        None => {
            observer.observe(&Event::Note(format!("layers are read from {}", path.display())));
            return Ok(Some(path));
        }
        Some(fault) if path.exists() => {
            let text = format!("{} {fault}; it is written anew", path.display());
            observer.observe(&Event::Warning(text));
        }
        Some(_) => {}
    }
    let needed = workload.weight_terms().iter().map(|term| term.bytes).sum::<u64>() + MARGIN;
    let free = files::free_bytes(folder.root());
    let there = free.map_or_else(String::new, |free| format!("; {} are free there", Bytes(free)));
    observer.observe(&Event::Note(format!(
        "writes the base in 4 bits to {}, about {}{there}",
        path.display(),
        Bytes(needed)
    )));
    if let Some(free) = free.filter(|free| *free < needed) {
        return Err(files::Error::NoRoom { path, needed: Bytes(needed), free: Bytes(free) }.into());
    }
    let ignored = opened.recipe.model.ignore_config_keys.clone();
    let base = OpenedBase::open_without(opened.base.clone(), ignored)?;
    let quantization = quantization.clone();
    let options = Options { quantization, shard_bytes: SHARD_BYTES, existing: Existing::Replace };
    let mut progress = |progress| {
        let (done, total) = match progress {
            quantize::Progress::Measuring(done, total) | quantize::Progress::Writing(done, total) => {
                (done as u64, total as u64)
            }
        };
        observer.observe(&Event::Loading { done, total });
    };
    match quantize::quantize(&base, &path, options, &mut progress, environment.stop) {
        Err(crate::export::Error::Stopped) => return Err(Error::Stopped),
        result => _ = result?,
    }
    let listed = list(&path)?;
    let text = serde_json::to_string_pretty(&listed).unwrap_or_default();
    files::write_bytes(&path.join(LIST), text.as_bytes())?;
    Ok(Some(path))
}

fn list(path: &Path) -> Result<Vec<Listed>, Error> {
    let weights = WeightFiles::open(path)?;
    let of = |path: &Path| {
        let digest = digest(path)?;
        Ok(Listed { name: digest.name, bytes: digest.bytes, sha256: digest.sha256 })
    };
    weights.paths().map(of).collect()
}

/// Why a packed base cannot be used for this run, in words; `None`: it can.
fn fault(path: &Path, quantization: &Quantization, inputs: &Inputs) -> Option<String> {
    let folder = match ModelDir::open(path) {
        Ok(folder) => folder,
        Err(error) => return Some(format!("cannot be used ({error})")),
    };
    let metadata = folder.weights().metadata()?;
    if metadata.get(ORIGINAL_QUANTIZATION_KEY) != Some(&quantization.to_string()) {
        return Some("has another quantization".to_owned());
    }
    let originals =
        metadata.iter().filter_map(|(key, hash)| Some((key.strip_prefix(ORIGINAL_HASH_PREFIX)?, hash)));
    let mut found = 0;
    for (name, hash) in originals {
        found += 1;
        if inputs.base_hash(name) != Some(hash) {
            return Some(format!("was made from another base ({name} differs)"));
        }
    }
    if found == 0 {
        return Some("does not say what it was made from".to_owned());
    }
    // A folder that `tune quantize` wrote has no list.
    let Ok(text) = std::fs::read(path.join(LIST)) else { return None };
    let listed: Vec<Listed> = match serde_json::from_slice(&text) {
        Ok(listed) => listed,
        Err(error) => return Some(format!("has a damaged list of its files ({error})")),
    };
    let is_right = |file: &Listed| {
        let name_is_plain = !file.name.contains(['/', '\\']);
        let now = name_is_plain.then(|| digest(&path.join(&file.name)).ok()).flatten();
        now.is_some_and(|now| now.bytes == file.bytes && now.sha256 == file.sha256)
    };
    let damaged = listed.iter().find(|file| !is_right(file))?;
    Some(format!("is damaged ({} is not what was written)", damaged.name))
}
