//! What a run is made from: a hash of every file that decides the adapter, taken before the first step.
//!
//! The hashes are those of the run's lock, and stand in every checkpoint and in the adapter as well. A file that changes
//! between two commands is noticed by its hash. During a run, a base that changes before it is loaded and rows that change
//! before they are read end it, noticed by length and time of change; at the end of the run all files are compared once
//! more, and what changed is recorded: the adapter is made from what was read, but cannot be made again from what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Error;
use super::open::Opened;
use crate::adapter::peft;
use crate::assets;
use crate::data::spec::ChatTemplateSource;
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
    files: Vec<InputFile>,
}

/// A file of which the hashes are taken.
struct InputFile {
    path: PathBuf,
    /// When it was hashed.
    stamp: Stamp,
    /// Name of its hash; a dataset has one for all its files.
    hash: String,
}

/// Length and time of change of a file: if they are the same, it is not read again to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    /// Of the file as it is now.
    fn of(path: &Path) -> Result<Self, assets::Error> {
        let about = fs::metadata(path).map_err(assets::Error::io(path))?;
        Ok(Self { bytes: about.len(), modified: about.modified().ok() })
    }
}

/// The files that decide an adapter, each with the name of its hash.
fn files(opened: &Opened) -> Result<Vec<(PathBuf, String)>, Error> {
    let mut paths = opened.model.tokenizer_files()?;
    paths.push(opened.model.root().join("config.json"));
    paths.extend(opened.model.weights().paths().map(Path::to_path_buf));
    let named = |prefix: &str, path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (path, format!("{prefix}{name}"))
    };
    let mut files: Vec<(PathBuf, String)> = paths.into_iter().map(|path| named(BASE, path)).collect();
    if let Some(folder) = &opened.recipe.adapter.init_from {
        files.extend(ADAPTER_FILES.map(|name| named(START, folder.join(name))));
    }
    if let Some(ChatTemplateSource::File(file)) = &opened.recipe.data.chat_template {
        files.push((PathBuf::from(file), TEMPLATE.to_owned()));
    }
    for (index, dataset) in opened.corpus.datasets().enumerate() {
        let of_dataset = dataset.files().iter();
        files.extend(of_dataset.map(|path| (path.to_path_buf(), format!("{DATASET}{index}"))));
    }
    Ok(files)
}

impl Inputs {
    /// Hashes everything that `opened` names: the base with its tokenizer, the datasets, the chat template, the adapter
    /// to start from. Reads every file once, except what was hashed when it was opened.
    pub(super) fn of(opened: &Opened, device: &Device, dtype: FloatDtype) -> Result<Self, Error> {
        let stamped = |(path, hash): (PathBuf, String)| -> Result<InputFile, assets::Error> {
            Ok(InputFile { stamp: Stamp::of(&path)?, path, hash })
        };
        let files = files(opened)?.into_iter().map(stamped).collect::<Result<_, _>>()?;

        let lock = opened.lock(device, dtype)?;
        let mut hashes = hashes_of(&lock);
        // A 4-bit base names the files it was made from: the adapter belongs to those too.
        for (key, value) in opened.model.weights().metadata().into_iter().flatten() {
            if let Some(name) = key.strip_prefix("tune.").filter(|name| name.starts_with(ORIGINAL)) {
                hashes.insert(name.to_owned(), value.clone());
            }
        }
        Ok(Self { lock, hashes, files })
    }

    /// The lock of the run.
    pub(super) fn lock(&self) -> &Lock {
        &self.lock
    }

    /// The hash of a file of the base.
    pub(super) fn base_hash(&self, file: &str) -> Option<&String> {
        self.hashes.get(&format!("{BASE}{file}"))
    }

    /// All hashes by name.
    pub(super) fn hashes(&self) -> &BTreeMap<String, String> {
        &self.hashes
    }

    /// Makes sure, once the base is loaded, that its files are those that were hashed. The reader of a dataset checks its
    /// own files.
    ///
    /// # Errors
    /// [`Error::ChangedUnderWay`].
    pub(super) fn require_unchanged(&self) -> Result<(), Error> {
        for InputFile { path, stamp, hash } in &self.files {
            if !hash.starts_with(DATASET) && Stamp::of(path)? != *stamp {
                return Err(Error::ChangedUnderWay { path: path.clone() });
            }
        }
        Ok(())
    }

    /// Names of the hashes whose files have another content now, at the end of the run. Reads a file only if its length or
    /// time of change differs.
    pub(super) fn changed(&self, opened: &Opened) -> BTreeSet<&str> {
        let has_moved = |file: &&InputFile| Stamp::of(&file.path).ok() != Some(file.stamp);
        let moved: BTreeSet<&str> =
            self.files.iter().filter(has_moved).map(|file| file.hash.as_str()).collect();
        moved
            .into_iter()
            .filter(|name| self.hash_now(name, opened).as_ref() != self.hashes.get(*name))
            .collect()
    }

    /// The hash of that name, of what lies on disk now.
    fn hash_now(&self, name: &str, opened: &Opened) -> Option<String> {
        match dataset_index(name) {
            Some(index) => opened.corpus.datasets().nth(index)?.sha256_now().ok(),
            None => {
                let file = self.files.iter().find(|file| file.hash == name)?;
                Some(assets::folder::digest(&file.path).ok()?.sha256)
            }
        }
    }

    /// Makes sure that the tokenizer's files, which are copied beside the adapter, are not among those that `changed`.
    ///
    /// # Errors
    /// [`Error::ChangedUnderWay`].
    pub(super) fn require_same_tokenizer(
        &self,
        changed: &BTreeSet<&str>,
        opened: &Opened,
    ) -> Result<(), Error> {
        let of_tokenizer = opened.model.tokenizer_files()?;
        let is_changed =
            |file: &&InputFile| changed.contains(file.hash.as_str()) && of_tokenizer.contains(&file.path);
        match self.files.iter().find(is_changed) {
            Some(file) => Err(Error::ChangedUnderWay { path: file.path.clone() }),
            None => Ok(()),
        }
    }
}

/// The hashes of a lock, by name.
pub(super) fn hashes_of(lock: &Lock) -> BTreeMap<String, String> {
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
    if let Some(template) = &lock.chat_template {
        hashes.insert(TEMPLATE.to_owned(), template.sha256.clone());
    }
    hashes
}

/// The differences between two sets of hashes, in words. `datasets` are the paths of the second, in the recipe's order.
pub(super) fn differences(
    was: &BTreeMap<String, String>,
    is: &BTreeMap<String, String>,
    datasets: &[String],
) -> Vec<String> {
    let all = was.keys().chain(is.keys().filter(|name| !was.contains_key(*name)));
    let differing = all.filter(|name| was.get(*name) != is.get(*name));
    let described = differing.map(|name| {
        let what = what(name, datasets);
        match (was.contains_key(name), is.contains_key(name)) {
            (true, true) => format!("{what} has another content"),
            (true, false) => format!("{what} is gone"),
            (false, _) => format!("{what} is new"),
        }
    });
    described.collect()
}

/// Whether the hash is not of a file, but recorded in the base, of a file that it was made from.
pub(super) fn is_said_by_base(name: &str) -> bool {
    name.starts_with(ORIGINAL)
}

fn dataset_index(name: &str) -> Option<usize> {
    name.strip_prefix(DATASET)?.parse().ok()
}

/// The thing that a hash is of.
pub(super) fn what(name: &str, datasets: &[String]) -> String {
    if let Some(file) = name.strip_prefix(BASE) {
        format!("the base's {file}")
    } else if let Some(file) = name.strip_prefix(START) {
        format!("{file} of the adapter to start from")
    } else if let Some(index) = dataset_index(name) {
        let path = datasets.get(index);
        path.map_or_else(|| format!("dataset {index}"), |path| format!("dataset {index} ({path})"))
    } else if is_said_by_base(name) {
        format!("what the base says of its origin ({name})")
    } else {
        "the chat template".to_owned()
    }
}
