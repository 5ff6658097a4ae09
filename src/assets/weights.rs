//! All weights of a model folder: one safetensors file, or shards and the index that joins them.
//!
//! Knows which file contains which tensor; knows nothing of the tensors that a model needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::experts::{Columns, Take};
use super::fp8::Spread;
use super::safetensors::{Dtype, Float, SafetensorsFile, TensorInfo};
use super::{Error, experts, fp8, json};

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
    /// By the names that transformers gives tensors today.
    places: BTreeMap<String, Place>,
    /// Tensors of a file in another format, in the place of all others.
    decoded: Option<Decoded>,
}

/// A file in another format, whose tensors can be read as f32.
pub trait Decode: Debug + Send + Sync {
    /// The values of a tensor, by the name that transformers gives it.
    ///
    /// # Errors
    /// The file cannot be read.
    fn values(&self, name: &str) -> Result<Vec<f32>, Error>;
}

#[derive(Debug)]
struct Decoded {
    tensors: BTreeMap<String, TensorInfo>,
    file: Box<dyn Decode>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Place {
    /// Position in `files`.
    file: usize,
    /// Its name there.
    name: String,
    /// Of a weight in a tensor of stacked experts, where it lies.
    part: Option<StackedPart>,
}

/// A part of a tensor.
#[derive(Debug)]
struct StackedPart {
    /// Its dtype and shape.
    info: TensorInfo,
    /// What is read of the file for it.
    stored: TensorInfo,
    /// Which columns of that it is; `None`: all that is read.
    columns: Option<Columns>,
}

impl StackedPart {
    fn of(whole: &TensorInfo, part: &experts::Part) -> Option<Self> {
        let expert = whole.slice(part.expert)?;
        match &part.take {
            Take::Rows(rows) => {
                let stored = expert.rows(rows.clone())?;
                Some(Self { info: stored.clone(), stored, columns: None })
            }
            Take::Columns(columns) => {
                let shape = match expert.shape.as_slice() {
                    [rows, _] => vec![columns.len(), *rows],
                    _ => vec![columns.len()],
                };
                Some(Self { info: expert.reshaped(shape), stored: expert, columns: Some(*columns) })
            }
        }
    }

    /// The numbers of the part, of those that were read for it.
    fn pick<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        match self.columns {
            Some(columns) => columns.of(&values),
            None => values,
        }
    }
}

/// The name that transformers gives a tensor today: models with towers once kept their text decoder elsewhere, Mixtral its
/// experts.
fn modern(name: &str) -> String {
    if let Some(renamed) = experts::renamed(name) {
        return renamed;
    }
    match (name.strip_prefix("language_model.model."), name.strip_prefix("language_model.lm_head.")) {
        (Some(rest), _) => format!("model.language_model.{rest}"),
        (_, Some(rest)) => format!("lm_head.{rest}"),
        _ => name.to_owned(),
    }
}

/// The places of tensors by their names of today; one whose name another tensor has keeps its own. Stacked experts are
/// found one by one.
fn places(
    found: impl IntoIterator<Item = (String, usize)>,
    files: &[SafetensorsFile],
) -> BTreeMap<String, Place> {
    let found: Vec<(String, usize)> = found.into_iter().collect();
    let names: BTreeSet<String> = found.iter().map(|(name, _)| modern(name)).collect();
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for (name, file) in found {
        let today = modern(&name);
        let alternates = experts::sign_of_alternation(&today).is_some_and(|sign| names.contains(&sign));
        let info = files[file].info(&name);
        let parts = info.and_then(|info| Some((info, experts::parts(&today, &info.shape, alternates)?)));
        if let Some((info, parts)) = parts {
            for part in parts {
                let place = Place { file, name: name.clone(), part: StackedPart::of(info, &part) };
                places.insert(part.name, place);
            }
            continue;
        }
        let key = if places.contains_key(&today) { name.clone() } else { today };
        places.insert(key, Place { file, name, part: None });
    }
    places
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
            let names: Vec<_> = file.names().map(|name| (name.to_owned(), 0)).collect();
            let files = vec![file];
            let places = places(names, &files);
            let folder = folder.to_path_buf();
            return Ok(Self { folder, index: None, files, places, decoded: None });
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
        let mut listed = BTreeMap::new();
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
            listed.insert(tensor.clone(), place);
        }
        // What a shard holds beyond the index is not hidden: the model decides whether it may be there.
        let mut unlisted: BTreeMap<String, usize> = BTreeMap::new();
        for (place, file) in files.iter().enumerate() {
            for name in file.names().filter(|name| !listed.contains_key(*name)) {
                if unlisted.insert(name.to_owned(), place).is_some() {
                    return Err(fail(format!(
                        "tensor `{name}` is in several shards and the index chooses none"
                    )));
                }
            }
        }
        listed.extend(unlisted);
        let places = places(listed, &files);
        let folder = folder.to_path_buf();
        Ok(Self { folder, index: Some(index), files, places, decoded: None })
    }

    /// The weights in a file of another format: shapes by tensor, and how to read them.
    pub fn decoded(folder: &Path, shapes: BTreeMap<String, Vec<usize>>, file: Box<dyn Decode>) -> Self {
        let tensors = shapes.into_iter().map(|(name, shape)| (name, TensorInfo::of_f32(shape))).collect();
        let (folder, decoded) = (folder.to_path_buf(), Some(Decoded { tensors, file }));
        Self { folder, index: None, files: Vec::new(), places: BTreeMap::new(), decoded }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Tensor names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let decoded = self.decoded.iter().flat_map(|decoded| decoded.tensors.keys());
        self.places.keys().chain(decoded).map(String::as_str)
    }

    /// The name that a tensor has in its file: to write it again as it was called. A weight of stacked experts is written
    /// by itself.
    pub fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.place(name).filter(|place| place.part.is_none()).map_or(name, |place| &place.name)
    }

    /// Dtype and shape of one tensor, by its name of today or that in its file.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        if let Some(decoded) = &self.decoded {
            return decoded.tensors.get(name);
        }
        let place = self.place(name)?;
        match &place.part {
            Some(part) => Some(&part.info),
            None => self.files[place.file].info(&place.name),
        }
    }

    /// The file that holds a tensor.
    pub fn path_of(&self, name: &str) -> Option<&Path> {
        self.file(name).map(|(file, _)| file.path())
    }

    /// The tensor of scales of a weight in 8-bit floats, if it has one that fits.
    pub fn scales_of(&self, name: &str) -> Option<String> {
        let shape = &self.info(name)?.shape;
        let fits =
            |scales: &String| self.info(scales).is_some_and(|info| Spread::of(shape, &info.shape).is_some());
        fp8::scale_names(name)?.into_iter().find(fits)
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
        let (file, stored) = self.require(name)?;
        match self.place(name).and_then(|place| place.part.as_ref()) {
            Some(part) => {
                let bytes = file.read_part(stored, &part.stored)?;
                // Of whole numbers, whatever their size.
                Ok(match part.info.dtype.bitsize() {
                    8 => part.pick(bytes),
                    16 => part.pick(bytes.as_chunks::<2>().0.to_vec()).concat(),
                    64 => part.pick(bytes.as_chunks::<8>().0.to_vec()).concat(),
                    _ => part.pick(bytes.as_chunks::<4>().0.to_vec()).concat(),
                })
            }
            None => file.read(stored),
        }
    }

    /// The bytes of one of the parts of a tensor that its first dimension counts.
    ///
    /// # Errors
    /// No such tensor or part, or its file can no longer be read.
    pub fn read_slice(&self, name: &str, index: usize) -> Result<Vec<u8>, Error> {
        let (file, stored) = self.require(name)?;
        let missing = || Error::MissingTensor { path: self.folder.clone(), tensor: name.to_owned() };
        let part = file.info(stored).and_then(|info| info.slice(index)).ok_or_else(missing)?;
        file.read_part(stored, &part)
    }

    /// One float tensor, converted while it is read; a weight in 8-bit floats is multiplied by its scales in f32.
    ///
    /// # Errors
    /// As [`SafetensorsFile::read_floats`]; a weight in 8-bit floats has no scales that fit it.
    pub fn read_floats<T: Float>(&self, name: &str) -> Result<Vec<T>, Error> {
        if let Some(decoded) = &self.decoded {
            return Ok(decoded.file.values(name)?.into_iter().map(T::from_f32).collect());
        }
        let (file, stored) = self.require(name)?;
        if let Some(part) = self.place(name).and_then(|place| place.part.as_ref()) {
            return Ok(part.pick(file.read_floats_of_part(stored, &part.stored)?));
        }
        if self.info(name).is_none_or(|info| info.dtype != Dtype::F8_E4M3) {
            return file.read_floats(stored);
        }
        let missing =
            |tensor: &str| Error::MissingTensor { path: self.folder.clone(), tensor: tensor.to_owned() };
        let scales = self.scales_of(name).ok_or_else(|| missing(&format!("{name}_scale_inv")))?;
        let (Some(info), Some(scale)) = (self.info(name), self.info(&scales)) else {
            return Err(missing(name));
        };
        let spread = Spread::of(&info.shape, &scale.shape).ok_or_else(|| missing(&scales))?;
        let mut values = file.read_floats::<f32>(stored)?;
        let (scale_file, scale_name) = self.require(&scales)?;
        spread.apply(&mut values, &scale_file.read_floats::<f32>(scale_name)?, info.shape[1]);
        let converted: Vec<T> = values.iter().map(|value| T::from_f32(*value)).collect();
        match converted.iter().position(|value| !value.is_finite()) {
            None => Ok(converted),
            Some(element) => Err(Error::BadNumber {
                path: file.path().to_path_buf(),
                tensor: name.to_owned(),
                element,
                value: values[element],
                reason: "is outside the range of the compute dtype; set `compute_dtype = \"f32\"`",
            }),
        }
    }

    /// Some rows of a float matrix, one after the other.
    ///
    /// # Errors
    /// As [`SafetensorsFile::read_rows`].
    pub fn read_rows<T: Float>(&self, name: &str, rows: &[u32]) -> Result<Vec<T>, Error> {
        let (file, stored) = self.require(name)?;
        file.read_rows(stored, rows)
    }

    /// Whether two tensors have the same dtype, shape and bytes.
    ///
    /// # Errors
    /// No such tensor, or a file can no longer be read.
    pub fn same_tensor(&self, name: &str, other: &str) -> Result<bool, Error> {
        let ((file, name), (other_file, other)) = (self.require(name)?, self.require(other)?);
        file.same_tensor(name, other_file, other)
    }

    fn place(&self, name: &str) -> Option<&Place> {
        self.places.get(name).or_else(|| self.places.get(&modern(name)))
    }

    /// The file of a tensor, and its name there.
    fn file(&self, name: &str) -> Option<(&SafetensorsFile, &str)> {
        let place = self.place(name)?;
        Some((&self.files[place.file], place.name.as_str()))
    }

    fn require(&self, name: &str) -> Result<(&SafetensorsFile, &str), Error> {
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
