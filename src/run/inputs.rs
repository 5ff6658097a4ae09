//! What a run is made from: a hash of every file that decides the adapter, taken before the first step.
//!
//! They are those of the run's lock, and stand in every checkpoint and in the adapter as well. A file that changes while it is being
//! read is noticed by its size and its time of modification; one that changed between two commands, by its hash.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Error;
use super::open::Opened;
use crate::adapter::peft;
use crate::assets;
use crate::device::Device;
use crate::model::FloatDtype;
use crate::record::{Lock, LockedFile};

const BASE: &str = "base_sha256.";
const ORIGINAL: &str = "original";
const DATASET: &str = "dataset_sha256.";
const START: &str = "start_sha256.";
const TEMPLATE: &str = "chat_template_sha256";
/// The files of an adapter to start from.
const ADAPTER_FILES: [&str; 2] = [peft::CONFIG_FILE, peft::TENSORS_FILE];

/// Hashes by name, and how the files looked when they were taken.
pub(super) struct Inputs {
    lock: Lock,
    hashes: BTreeMap<String, String>,
    stamps: Vec<(PathBuf, Stamp)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(path: &Path) -> Result<Self, assets::Error> {
        let about = fs::metadata(path).map_err(assets::Error::io(path))?;
        Ok(Self { bytes: about.len(), modified: about.modified().ok() })
    }
}

impl Inputs {
    /// Hashes everything that `opened` names: the base with its tokenizer, the datasets, the chat template, the adapter
    /// to start from. Reads every file once.
    pub(super) fn of(opened: &Opened, device: &Device, dtype: FloatDtype) -> Result<Self, Error> {
        let mut paths = opened.model.tokenizer_files()?;
        paths.push(opened.model.root().join("config.json"));
        paths.extend(opened.model.weights().paths().map(Path::to_path_buf));
        let start = opened.recipe.adapter.init_from.as_ref();
        paths.extend(start.into_iter().flat_map(|folder| ADAPTER_FILES.map(|name| folder.join(name))));
        let stamp = |path: &PathBuf| Ok((path.clone(), Stamp::of(path)?));
        let stamps = paths.iter().map(stamp).collect::<Result<_, assets::Error>>()?;

        let lock = opened.lock(device, dtype)?;
        let mut hashes = BTreeMap::new();
        let mut put = |prefix: &str, files: &[LockedFile]| {
            hashes.extend(files.iter().map(|file| (format!("{prefix}{}", file.name), file.sha256.clone())));
        };
        put(BASE, &lock.base_file);
        put(BASE, &lock.tokenizer_file);
        put(START, &lock.start_file);
        for (index, dataset) in lock.dataset.iter().enumerate() {
            hashes.insert(format!("{DATASET}{index}"), dataset.sha256.clone());
        }
        // What a 4-bit base says of the files it was made from, so that the adapter is known to belong to those too.
        for (key, value) in opened.model.weights().metadata().into_iter().flatten() {
            if let Some(name) = key.strip_prefix("tune.").filter(|name| name.starts_with(ORIGINAL)) {
                hashes.insert(name.to_owned(), value.clone());
            }
        }
        if let Some(template) = &lock.chat_template {
            hashes.insert(TEMPLATE.to_owned(), template.sha256.clone());
        }
        Ok(Self { lock, hashes, stamps })
    }

    /// The lock of the run.
    pub(super) fn lock(&self) -> &Lock {
        &self.lock
    }

    /// All hashes by name.
    pub(super) fn hashes(&self) -> &BTreeMap<String, String> {
        &self.hashes
    }

    /// Makes sure, once the base is loaded, that its files are those that were hashed. What changes in a dataset, its
    /// reader notices.
    pub(super) fn require_unchanged(&self) -> Result<(), Error> {
        for (path, stamp) in &self.stamps {
            if Stamp::of(path)? != *stamp {
                return Err(Error::ChangedUnderWay { path: path.clone() });
            }
        }
        Ok(())
    }

    /// Makes sure that the tokenizer's files, which go beside the adapter, are those that the run was made with.
    pub(super) fn require_same_tokenizer(&self, opened: &Opened) -> Result<(), Error> {
        for path in opened.model.tokenizer_files()? {
            let file = assets::folder::digest(&path)?;
            if self.hashes.get(&format!("{BASE}{}", file.name)) != Some(&file.sha256) {
                return Err(Error::ChangedUnderWay { path });
            }
        }
        Ok(())
    }
}

/// What two sets of hashes have different, in words. `datasets` are the paths of the second, in the recipe's order.
pub(super) fn differences(
    was: &BTreeMap<String, String>,
    is: &BTreeMap<String, String>,
    datasets: &[String],
) -> Vec<String> {
    let all = was.keys().chain(is.keys().filter(|name| !was.contains_key(*name)));
    let differing = all.filter(|name| was.get(*name) != is.get(*name));
    let told = differing.map(|name| {
        let what = what(name, datasets);
        match (was.contains_key(name), is.contains_key(name)) {
            (true, true) => format!("{what} has another content"),
            (true, false) => format!("{what} is gone"),
            (false, _) => format!("{what} is new"),
        }
    });
    told.collect()
}

/// The thing that a hash is of.
fn what(name: &str, datasets: &[String]) -> String {
    if let Some(file) = name.strip_prefix(BASE) {
        format!("the base's {file}")
    } else if let Some(file) = name.strip_prefix(START) {
        format!("{file} of the adapter to start from")
    } else if let Some(index) = name.strip_prefix(DATASET) {
        let path = index.parse().ok().and_then(|index: usize| datasets.get(index));
        path.map_or_else(|| format!("dataset {index}"), |path| format!("dataset {index} ({path})"))
    } else if name.starts_with(ORIGINAL) {
        format!("what the base says of its origin ({name})")
    } else {
        "the chat template".to_owned()
    }
}
