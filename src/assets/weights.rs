//! All weights of a model folder: one safetensors file, or shards and the index that joins them.
//!
//! Knows which file contains which tensor; knows nothing of the tensors that a model needs.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::safetensors::{Float, SafetensorsFile, TensorInfo};
use super::{Error, json};

/// The single file's name.
const SINGLE: &str = "model.safetensors";
/// The index's name.
const INDEX: &str = "model.safetensors.index.json";

/// The weight files of a folder, open and with checked headers.
#[derive(Debug)]
pub struct WeightFiles {
    folder: PathBuf,
    index: Option<PathBuf>,
    files: Vec<SafetensorsFile>,
    /// Tensor name → position in `files`.
    places: BTreeMap<String, usize>,
}

impl WeightFiles {
    /// Opens the weights of a folder; reads headers only.
    ///
    /// As in transformers, `model.safetensors` wins over an index beside it.
    ///
    /// # Errors
    /// There are no safetensors weights, a shard is missing or contradicts the index, or a header is invalid.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        require_one_kind(folder)?;
        if exists(&folder.join(SINGLE))? {
            let file = SafetensorsFile::open(&folder.join(SINGLE))?;
            let places = file.names().map(|name| (name.to_owned(), 0)).collect();
            return Ok(Self { folder: folder.to_path_buf(), index: None, files: vec![file], places });
        }
        let index = folder.join(INDEX);
        match exists(&index)? {
            true => Self::open_sharded(folder, index),
            false => Err(no_weights(folder)),
        }
    }

    fn open_sharded(folder: &Path, index: PathBuf) -> Result<Self, Error> {
        let fail = |message: String| Error::Index { path: index.clone(), message };
        let value = json::read_object(&index, json::INDEX_LIMIT)?;
        let Some(map) = value.get("weight_map").filter(|map| map.is_object()) else {
            return Err(fail("expected an object `weight_map` from tensor names to shard files".into()));
        };
        let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
        let mut files = Vec::new();
        let mut places = BTreeMap::new();
        for (tensor, shard) in json::entries(map) {
            let Value::String(shard) = shard else {
                return Err(fail(format!(
                    "the shard of `{tensor}` is {}, not a file name",
                    json::kind(shard)
                )));
            };
            // A path could lead out of the folder.
            if shard.contains(['/', '\\', ':']) || shard.starts_with('.') || shard.is_empty() {
                return Err(fail(format!("the shard of `{tensor}`, `{shard}`, is not a plain file name")));
            }
            let place = match shards.get(shard.as_str()) {
                Some(&place) => place,
                None => {
                    let path = folder.join(shard);
                    if !exists(&path)? {
                        return Err(fail(format!(
                            "shard `{shard}`, which holds `{tensor}`, is missing; download the folder again"
                        )));
                    }
                    files.push(SafetensorsFile::open(&path)?);
                    shards.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            if files[place].info(tensor).is_none() {
                return Err(fail(format!("tensor `{tensor}` is not in `{shard}`, where the index puts it")));
            }
            places.insert(tensor.clone(), place);
        }
        // What a shard holds beyond the index is not hidden: the model decides whether it may be there.
        let mut unlisted: BTreeMap<String, usize> = BTreeMap::new();
        for (place, file) in files.iter().enumerate() {
            for name in file.names().filter(|name| !places.contains_key(*name)) {
                if unlisted.insert(name.to_owned(), place).is_some() {
                    return Err(fail(format!(
                        "tensor `{name}` is in several shards and the index chooses none"
                    )));
                }
            }
        }
        places.extend(unlisted);
        Ok(Self { folder: folder.to_path_buf(), index: Some(index), files, places })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Tensor names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Dtype and shape of one tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.file(name)?.info(name)
    }

    /// The file that holds a tensor.
    pub fn path_of(&self, name: &str) -> Option<&Path> {
        self.file(name).map(SafetensorsFile::path)
    }

    /// Every file the weights come from, the index included.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.index.as_deref().into_iter().chain(self.files.iter().map(SafetensorsFile::path))
    }

    /// The metadata of the first file: where the weights come from is the same in all of them.
    pub fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        self.files.first().map(SafetensorsFile::metadata)
    }

    /// Length of all weight files together.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(SafetensorsFile::length).sum()
    }

    /// The bytes of one tensor, little-endian.
    ///
    /// # Errors
    /// No such tensor, or its file can no longer be read.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        self.require(name)?.read(name)
    }

    /// One float tensor, converted while it is read.
    ///
    /// # Errors
    /// As [`SafetensorsFile::read_floats`].
    pub fn read_floats<T: Float>(&self, name: &str) -> Result<Vec<T>, Error> {
        self.require(name)?.read_floats(name)
    }

    /// Whether two tensors have the same dtype, shape and bytes.
    ///
    /// # Errors
    /// No such tensor, or a file can no longer be read.
    pub fn same_tensor(&self, name: &str, other: &str) -> Result<bool, Error> {
        self.require(name)?.same_tensor(name, self.require(other)?, other)
    }

    fn file(&self, name: &str) -> Option<&SafetensorsFile> {
        self.places.get(name).map(|&place| &self.files[place])
    }

    fn require(&self, name: &str) -> Result<&SafetensorsFile, Error> {
        self.file(name)
            .ok_or_else(|| Error::MissingTensor { path: self.folder.clone(), tensor: name.to_owned() })
    }
}

/// Refuses a folder that holds both a model and an adapter: it does not say which of them is meant.
///
/// # Errors
/// [`Error::ModelAndAdapter`].
pub fn require_one_kind(folder: &Path) -> Result<(), Error> {
    let has = |name: &str| folder.join(name).exists();
    let has_adapter =
        has("adapter_config.json") && ["adapter_model.safetensors", "adapter_model.bin"].into_iter().any(has);
    match has_adapter && [SINGLE, INDEX].into_iter().any(has) {
        true => Err(Error::ModelAndAdapter { folder: folder.to_path_buf() }),
        false => Ok(()),
    }
}

/// Whether anything stands at a path; a link to nothing is an error that says so.
pub(super) fn exists(path: &Path) -> Result<bool, Error> {
    match fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::symlink_metadata(path) {
            // The hub cache links snapshots to blobs; an interrupted download leaves links to nothing.
            Ok(_) => Err(Error::Io {
                path: path.to_path_buf(),
                source: std::io::Error::new(
                    ErrorKind::NotFound,
                    "it is a link to a file that is not there; download the model again",
                ),
            }),
            Err(_) => Ok(false),
        },
        Err(source) => Err(Error::Io { path: path.to_path_buf(), source }),
    }
}

/// Says what a folder without safetensors weights holds instead.
fn no_weights(folder: &Path) -> Error {
    let names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let any = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
    let help = if names.iter().any(|name| name == "adapter_config.json") {
        "this is an adapter; give the folder of its base model (`base_model_name_or_path` in \
         adapter_config.json), and the adapter as `adapter.lora.init_from`"
    } else if any(".gguf") {
        "GGUF files cannot be trained on; download the original safetensors weights"
    } else if any(".bin") || any(".pth") || any(".pt") {
        "its weights are PyTorch pickles, which can run code when they are read; download a safetensors version, \
         or convert them: load the model in transformers and call `save_pretrained(folder)`"
    } else {
        "expected `model.safetensors`, or shards with `model.safetensors.index.json`"
    };
    Error::MissingFile { folder: folder.to_path_buf(), file: "safetensors weights".into(), help: help.into() }
}
