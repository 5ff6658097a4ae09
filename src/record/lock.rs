//! `recipe.lock`: the hashes of all inputs of a run, its compute settings, and the comparison of two locks.
//!
//! Different inputs make another run. Different surroundings (the program's version, the processor) may give another
//! adapter: equal bytes are guaranteed for one device and one build.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Error, LOCK_FILE, machine};
use crate::adapter::peft;
use crate::assets::{self, Base, FileDigest, ModelDir};
use crate::data::corpus::Corpus;
use crate::data::template::ChatTemplate;
use crate::files;
use crate::recipe::Recipe;

/// Layout of the file.
const VERSION: u32 = 1;

/// Comment at the top of the file.
const HEAD: &str = "# The inputs of this run. `tune reproduce` checks each of them and trains again.\n\
                    # The adapter does not depend on the number of threads or on the paths of the files.\n\n";

/// The inputs of a run, and its compute settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Layout of the file.
    pub version: u32,
    /// Version of the program.
    pub tune: String,
    /// The recipe's canonical hash, over everything that can change the adapter.
    pub recipe_sha256: String,
    /// The compute settings.
    pub compute: Compute,
    /// The chat template, if one is used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub chat_template: Option<Template>,
    /// The base model.
    pub base: BaseModel,
    /// Configuration and weights of the base.
    pub base_file: Vec<LockedFile>,
    /// Files of its tokenizer.
    #[serde(default)]
    pub tokenizer_file: Vec<LockedFile>,
    /// Files of the adapter that the run starts from.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub start_file: Vec<LockedFile>,
    /// The datasets, in the recipe's order.
    pub dataset: Vec<LockedDataset>,
}

/// The compute settings of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compute {
    /// The device.
    pub device: String,
    /// The compute dtype.
    pub dtype: String,
    /// Processor architecture.
    pub architecture: String,
    /// Instruction sets that the kernels choose between.
    pub processor_features: Vec<String>,
}

/// The name of a base model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModel {
    /// As in the recipe.
    pub name: String,
    /// Commit of the hub's snapshot, for a hub model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub commit: Option<String>,
}

/// A chat template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Its origin, for messages.
    pub origin: String,
    /// SHA-256 of its text.
    pub sha256: String,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedFile {
    /// Its name in its folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256 of its content.
    pub sha256: String,
}

/// One dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedDataset {
    /// As in the recipe.
    pub path: String,
    /// Rows of all its files.
    pub rows: u64,
    /// SHA-256 over names and contents of its files.
    pub sha256: String,
}

/// The inputs of a lock.
pub struct Inputs<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Folder or hub snapshot of the base.
    pub base: &'a Base,
    /// The base's folder.
    pub model: &'a ModelDir,
    /// The chat template, if one is used.
    pub template: Option<&'a ChatTemplate>,
    /// The examples.
    pub corpus: &'a Corpus,
    /// Name of the device.
    pub device: &'a str,
    /// Name of the compute dtype.
    pub dtype: &'a str,
}

/// An input that differs from the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The input.
    pub what: String,
    /// Its value in the lock.
    pub locked: String,
    /// Its present value.
    pub found: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {} in the lock, now {}", self.what, self.locked, self.found)
    }
}

impl Lock {
    /// Hashes every input. Reads all of them once.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn new(inputs: &Inputs<'_>) -> Result<Self, Error> {
        let Inputs { recipe, base, model, template, corpus, device, dtype } = inputs;
        let digests = |paths: Vec<PathBuf>| -> Result<Vec<LockedFile>, Error> {
            paths.iter().map(|path| Ok(LockedFile::from(assets::folder::digest(path)?))).collect()
        };
        let start_file = match &recipe.adapter.init_from {
            Some(folder) => {
                digests([peft::CONFIG_FILE, peft::TENSORS_FILE].map(|name| folder.join(name)).into())?
            }
            None => Vec::new(),
        };
        let mut dataset = Vec::new();
        for (spec, opened) in recipe.datasets.iter().zip(corpus.datasets()) {
            dataset.push(LockedDataset {
                path: spec.path.clone(),
                rows: opened.rows(),
                sha256: opened.sha256()?,
            });
        }
        Ok(Self {
            version: VERSION,
            tune: env!("CARGO_PKG_VERSION").to_owned(),
            recipe_sha256: recipe.sha256(),
            compute: Compute {
                device: (*device).to_owned(),
                dtype: (*dtype).to_owned(),
                architecture: std::env::consts::ARCH.to_owned(),
                processor_features: machine::processor_features().into_iter().map(str::to_owned).collect(),
            },
            chat_template: template.map(|template| Template {
                origin: template.origin().to_owned(),
                sha256: sha256(template.source().as_bytes()),
            }),
            base: BaseModel {
                name: base.hub.as_ref().map_or_else(|| recipe.model.base.clone(), |hub| hub.id.clone()),
                commit: base.hub.as_ref().map(|hub| hub.commit.clone()),
            },
            base_file: model.files_sha256()?.into_iter().map(LockedFile::from).collect(),
            tokenizer_file: digests(model.tokenizer_files()?)?,
            start_file,
            dataset,
        })
    }

    /// Writes the lock into a run folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(LOCK_FILE);
        let text = toml::to_string(self)
            .map_err(|error| Error::Damaged { path: path.clone(), reason: error.to_string() })?;
        Ok(files::write_bytes(&path, format!("{HEAD}{text}").as_bytes())?)
    }

    /// Reads the lock of a run folder.
    ///
    /// # Errors
    /// It does not exist, or is not a lock of this version.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(LOCK_FILE);
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let lock: Self = toml::from_str(&super::read(&path)?).map_err(|error| damaged(error.to_string()))?;
        if lock.version != VERSION {
            let reason = format!("it has version {}; this release reads version {VERSION}", lock.version);
            return Err(damaged(reason));
        }
        Ok(lock)
    }

    /// The inputs that differ from this lock.
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut compare = |what: String, locked: &str, now: &str| {
            if locked != now {
                found.push(Difference { what, locked: locked.to_owned(), found: now.to_owned() });
            }
        };
        compare("the recipe".into(), &self.recipe_sha256, &now.recipe_sha256);
        let template =
            |lock: &Self| lock.chat_template.as_ref().map_or("none".into(), |one| one.sha256.clone());
        compare("the chat template".into(), &template(self), &template(now));
        let sides = [
            ("of the base", &self.base_file, &now.base_file),
            ("of the tokenizer", &self.tokenizer_file, &now.tokenizer_file),
            ("of the adapter to start from", &self.start_file, &now.start_file),
        ];
        for (whose, locked, now) in sides {
            for name in union(locked.iter().chain(now).map(|file| file.name.as_str())) {
                let describe = |files: &[LockedFile]| match files.iter().find(|file| file.name == name) {
                    Some(file) => format!("{} ({} bytes)", file.sha256, file.bytes),
                    None => "absent".to_owned(),
                };
                compare(format!("{name} {whose}"), &describe(locked), &describe(now));
            }
        }
        for index in 0..self.dataset.len().max(now.dataset.len()) {
            let (locked, now) = (self.dataset.get(index), now.dataset.get(index));
            let path = locked.or(now).map_or("", |dataset| dataset.path.as_str());
            let describe = |dataset: Option<&LockedDataset>| match dataset {
                Some(dataset) => format!("{} ({} rows)", dataset.sha256, dataset.rows),
                None => "absent".to_owned(),
            };
            compare(format!("dataset {path}"), &describe(locked), &describe(now));
        }
        found
    }

    /// Differences in version, device and processor, which may change the adapter even with equal inputs.
    pub fn surroundings(&self, now: &Self) -> Vec<Difference> {
        let pairs = [
            ("the version of tune", self.tune.clone(), now.tune.clone()),
            ("the device", self.compute.device.clone(), now.compute.device.clone()),
            ("the compute dtype", self.compute.dtype.clone(), now.compute.dtype.clone()),
            ("the architecture", self.compute.architecture.clone(), now.compute.architecture.clone()),
            (
                "the processor's instruction sets",
                self.compute.processor_features.join(" "),
                now.compute.processor_features.join(" "),
            ),
        ];
        let differs = pairs.into_iter().filter(|(_, locked, now)| locked != now);
        differs.map(|(what, locked, found)| Difference { what: what.to_owned(), locked, found }).collect()
    }
}

impl From<FileDigest> for LockedFile {
    fn from(digest: FileDigest) -> Self {
        Self { name: digest.name, bytes: digest.bytes, sha256: digest.sha256 }
    }
}

impl From<LockedFile> for FileDigest {
    fn from(file: LockedFile) -> Self {
        Self { name: file.name, bytes: file.bytes, sha256: file.sha256 }
    }
}

/// Each name once, in order of first occurrence.
fn union<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut once: Vec<&str> = Vec::new();
    for name in names {
        if !once.contains(&name) {
            once.push(name);
        }
    }
    once
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> Lock {
        let file =
            |name: &str, sha256: &str| LockedFile { name: name.into(), bytes: 3, sha256: sha256.into() };
        Lock {
            version: VERSION,
            tune: "0.1.0".into(),
            recipe_sha256: "r".into(),
            compute: Compute {
                device: "cpu".into(),
                dtype: "f32".into(),
                architecture: "x86_64".into(),
                processor_features: vec!["avx2".into()],
            },
            chat_template: Some(Template { origin: "a \"file\"".into(), sha256: "t".into() }),
            base: BaseModel { name: "org/name".into(), commit: None },
            base_file: vec![file("config.json", "c"), file("model.safetensors", "m")],
            tokenizer_file: vec![file("tokenizer.json", "k")],
            start_file: Vec::new(),
            dataset: vec![LockedDataset { path: "a.jsonl".into(), rows: 7, sha256: "d".into() }],
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        lock().write(folder.path()).unwrap();
        assert_eq!(Lock::read(folder.path()).unwrap(), lock());
        std::fs::write(folder.path().join(LOCK_FILE), "version = 9").unwrap();
        assert!(matches!(Lock::read(folder.path()), Err(Error::Damaged { .. })));
    }

    #[test]
    fn every_difference_is_named() {
        assert_eq!(lock().differences(&lock()), []);
        let mut other = lock();
        other.recipe_sha256 = "R".into();
        other.chat_template = None;
        other.base_file[1].sha256 = "M".into();
        other.tokenizer_file.clear();
        other.dataset[0].sha256 = "D".into();
        other.start_file.push(LockedFile {
            name: "adapter_config.json".into(),
            bytes: 1,
            sha256: "x".into(),
        });
        let named: Vec<String> = lock().differences(&other).into_iter().map(|one| one.what).collect();
        assert_eq!(
            named,
            [
                "the recipe",
                "the chat template",
                "model.safetensors of the base",
                "tokenizer.json of the tokenizer",
                "adapter_config.json of the adapter to start from",
                "dataset a.jsonl",
            ]
        );
    }

    #[test]
    fn surroundings_are_no_inputs() {
        let mut other = lock();
        other.tune = "0.2.0".into();
        other.compute.processor_features.push("avx512f".into());
        assert_eq!(lock().differences(&other), []);
        let said: Vec<String> = lock().surroundings(&other).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "the version of tune: 0.1.0 in the lock, now 0.2.0",
                "the processor's instruction sets: avx2 in the lock, now avx2 avx512f",
            ]
        );
    }
}
