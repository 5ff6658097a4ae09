//! What a run is made from: a hash of every file that decides the adapter, taken before the first step.
//!
//! They are those of the run's lock, and stand in every checkpoint and in the adapter as well. A file that changes while
//! it is being read is noticed by its [`Stamp`]; one that changed between two commands, by its hash. What becomes of it
//! once it was read is [`watch`](super::watch)'s.

use std::collections::BTreeMap;
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

/// One of the files that the hashes are of.
pub(super) struct InputFile {
    /// The file.
    pub path: PathBuf,
    /// What it was when it was hashed.
    pub stamp: Stamp,
    /// Name of its hash; a dataset has one for all its files.
    pub hash: String,
}

/// What tells that a file is still the one that was read, without reading it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// Where the system numbers its files: another one may have come under the same name.
    number: Option<u64>,
}

impl Stamp {
    /// What the file is now.
    pub(super) fn of(path: &Path) -> Result<Self, assets::Error> {
        let about = fs::metadata(path).map_err(assets::Error::io(path))?;
        Ok(Self { bytes: about.len(), modified: about.modified().ok(), number: number(&about) })
    }
}

#[cfg(unix)]
fn number(about: &fs::Metadata) -> Option<u64> {
    Some(std::os::unix::fs::MetadataExt::ino(about))
}

#[cfg(not(unix))]
fn number(_: &fs::Metadata) -> Option<u64> {
    None
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
    /// to start from. Reads every file once.
    pub(super) fn of(opened: &Opened, device: &Device, dtype: FloatDtype) -> Result<Self, Error> {
        let stamped = |(path, hash): (PathBuf, String)| -> Result<InputFile, assets::Error> {
            Ok(InputFile { stamp: Stamp::of(&path)?, path, hash })
        };
        let files = files(opened)?.into_iter().map(stamped).collect::<Result<_, _>>()?;

        let lock = opened.lock(device, dtype)?;
        let mut hashes = hashes_of(&lock);
        // What a 4-bit base says of the files it was made from, so that the adapter is known to belong to those too.
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

    /// All hashes by name.
    pub(super) fn hashes(&self) -> &BTreeMap<String, String> {
        &self.hashes
    }

    /// The files that the hashes are of.
    pub(super) fn files(&self) -> &[InputFile] {
        &self.files
    }

    /// Makes sure, once the base is loaded, that its files are those that were hashed. What changes in a dataset, its
    /// reader notices.
    pub(super) fn require_unchanged(&self) -> Result<(), Error> {
        for InputFile { path, stamp, hash } in &self.files {
            if !hash.starts_with(DATASET) && Stamp::of(path)? != *stamp {
                return Err(Error::ChangedUnderWay { path: path.clone() });
            }
        }
        Ok(())
    }

    /// Whether what lies on disk now is other than what the hash of that name is of. Reads it all.
    pub(super) fn is_other_now(&self, name: &str, opened: &Opened) -> bool {
        let now = match dataset_index(name) {
            Some(index) => opened.corpus.datasets().nth(index).and_then(|dataset| dataset.sha256_now().ok()),
            None => {
                let file = self.files.iter().find(|file| file.hash == name);
                file.and_then(|file| Some(assets::folder::digest(&file.path).ok()?.sha256))
            }
        };
        now.as_ref() != self.hashes.get(name)
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

/// The hash is not of a file, but what the base says of files that it was made from.
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
