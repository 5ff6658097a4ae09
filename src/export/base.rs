//! Checks that a base is the one an adapter was trained on. Family and tensor sizes must fit. File hashes must match
//! where the adapter records them (`tune.base_sha256.<file>` in its metadata), unless the user overrides that.

use std::collections::BTreeMap;

use super::Error;
use crate::adapter::peft;
use crate::adapter::target::Target;
use crate::assets::folder::digest;
use crate::assets::{Base, ModelDir};
use crate::model::{DecoderSpec, family, tensors};
use crate::quant::spec::{Quantization, Spec};

/// Prefix of the metadata keys that hold hashes of the base's files.
pub const HASH_PREFIX: &str = "tune.base_sha256.";
/// Metadata key of the base's family.
pub const FAMILY_KEY: &str = "tune.base_family";
/// Metadata key of the keys of config.json, as a JSON list, that the run read as if they were absent.
pub const IGNORED_CONFIG_KEYS: &str = "tune.ignored_config_keys";
/// Metadata key of the quantization that the base was trained on with.
pub const QUANTIZATION_KEY: &str = "tune.quantization";
/// Prefix of the metadata keys that hold hashes of the files that a 4-bit base was made from. They are written into
/// the 4-bit base and into adapters trained on it.
pub const ORIGINAL_HASH_PREFIX: &str = "tune.original_sha256.";
/// Metadata key of the quantization that made a 4-bit base; written in the same places.
pub const ORIGINAL_QUANTIZATION_KEY: &str = "tune.original_quantization";

/// A base model, open, with its tensors checked.
#[derive(Debug)]
pub struct OpenedBase {
    /// Folder or hub snapshot that it was opened from.
    pub base: Base,
    /// The opened model folder.
    pub folder: ModelDir,
    /// Architecture and sizes.
    pub spec: DecoderSpec,
    /// Whether any of its projections are stored in 4 bits.
    pub quantized: bool,
    /// Keys of config.json that were read as if they were absent.
    pub ignored_config_keys: Vec<String>,
    /// The quantization of the projections, if all of them are stored in 4 bits with the same settings.
    pub blocks: Option<Spec>,
}

impl OpenedBase {
    /// Opens a base and checks its tensor names and shapes; reads no tensor data.
    ///
    /// # Errors
    /// The architecture is not supported, or tensors do not fit it.
    pub fn open(base: Base) -> Result<Self, Error> {
        Self::open_without(base, Vec::new())
    }

    /// As [`open`](Self::open), with the keys of config.json left out that a run left out.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_without(base: Base, ignored_config_keys: Vec<String>) -> Result<Self, Error> {
        let folder = ModelDir::open(&base.folder)?;
        let spec = family::decoder_spec_of_run(folder.config(), &ignored_config_keys)?;
        let checked = tensors::check(&spec, folder.weights(), None)?;
        let spec = checked.as_stored(spec);
        let (quantized, blocks) = (!checked.quantized.is_empty(), checked.blocks(&spec));
        Ok(Self { base, folder, spec, quantized, ignored_config_keys, blocks })
    }

    /// The same with the projections that `patterns` match left dense when it is quantized.
    ///
    /// # Errors
    /// Patterns that do not fit it.
    pub fn keeping(mut self, patterns: &[String]) -> Result<Self, Error> {
        self.spec = self.spec.keeping(patterns).map_err(|problems| Error::Choice {
            message: problems.first().map_or_else(String::new, ToString::to_string),
        })?;
        Ok(self)
    }

    /// Name for messages and model cards: the hub id, else the folder.
    pub fn name(&self) -> String {
        match &self.base.hub {
            Some(hub) => hub.id.clone(),
            None => self.base.folder.display().to_string(),
        }
    }
}

/// The keys of config.json that the run of an adapter left out.
pub fn ignored_config_keys(adapter: &peft::Adapter) -> Vec<String> {
    let recorded = adapter.metadata().get(IGNORED_CONFIG_KEYS);
    recorded.and_then(|keys| serde_json::from_str(keys).ok()).unwrap_or_default()
}

/// Evidence that a base is the one an adapter was trained on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Files whose hash matches the adapter's metadata.
    pub same: Vec<String>,
    /// Weights or config.json whose hash differs, accepted at the user's request.
    pub overruled: Vec<String>,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// Resolves an adapter's targets on a base and compares the recorded hashes.
///
/// `any_hash` accepts files whose hash differs from the recorded one.
///
/// # Errors
/// [`Error::WrongBase`]; [`Error::Adapter`] where tensors do not fit the model.
pub fn fit(
    adapter: &peft::Adapter,
    base: &OpenedBase,
    any_hash: bool,
) -> Result<(Vec<Target>, Identity), Error> {
    let metadata = adapter.metadata();
    let wrong = |differences: Vec<String>, overridable: bool| Error::WrongBase {
        adapter: adapter.folder().to_path_buf(),
        differences,
        overridable,
    };
    if let Some(trained) = metadata.get(FAMILY_KEY)
        && trained != base.spec.family
    {
        return Err(wrong(
            vec![format!(
                "the adapter's base is a {trained} model; {} is a {} model",
                base.name(),
                base.spec.family
            )],
            false,
        ));
    }
    let targets = adapter.targets(&base.spec.modules())?;
    let identity = identify(metadata, base)?;
    if !identity.overruled.is_empty() && !any_hash {
        return Err(wrong(identity.overruled, true));
    }
    Ok((targets, identity))
}

/// Compares the recorded hashes with the base's files.
fn identify(metadata: &BTreeMap<String, String>, base: &OpenedBase) -> Result<Identity, Error> {
    let mut identity = Identity::default();
    let recorded: BTreeMap<&str, &str> = metadata
        .iter()
        .filter_map(|(key, hash)| Some((key.strip_prefix(HASH_PREFIX)?, hash.as_str())))
        .collect();
    if recorded.is_empty() {
        identity.notes.push("the adapter records no hashes of its base, so only sizes were compared".into());
        return Ok(identity);
    }
    let mut found = BTreeMap::new();
    for file in base.folder.files_sha256()? {
        found.insert(file.name, file.sha256);
    }
    let deciding: Vec<String> = found.keys().cloned().collect();
    for path in base.folder.tokenizer_files()? {
        let file = digest(&path)?;
        found.insert(file.name, file.sha256);
    }
    for (name, hash) in &recorded {
        let weights = deciding.iter().any(|file| file == name) || name.ends_with(".safetensors");
        match found.get(*name) {
            Some(own) if own == hash => identity.same.push((*name).to_owned()),
            Some(own) if weights => identity.overruled.push(format!(
                "{name}: SHA-256 is {}…, the adapter records {}…",
                short(own),
                short(hash)
            )),
            None if weights => identity.overruled.push(format!("{name} is missing; the adapter records it")),
            Some(_) => {
                identity.notes.push(format!("{name} of the base differs from the one used in training"))
            }
            None => identity
                .notes
                .push(format!("{name} was used in training and is missing from the base's folder")),
        }
    }
    for name in deciding.iter().filter(|name| !recorded.contains_key(name.as_str())) {
        identity.overruled.push(format!("{name}: the adapter records no such file"));
    }
    if !identity.overruled.is_empty() && is_original(metadata, &deciding, &found) {
        identity.overruled.clear();
        identity.same.extend(deciding);
        identity.notes.push("the adapter was trained on these weights quantized by `tune quantize`".into());
    }
    Ok(identity)
}

/// Whether the files are the originals of the 4-bit base that the adapter was trained on.
fn is_original(
    metadata: &BTreeMap<String, String>,
    deciding: &[String],
    found: &BTreeMap<String, String>,
) -> bool {
    let originals: BTreeMap<&str, &str> = metadata
        .iter()
        .filter_map(|(key, hash)| Some((key.strip_prefix(ORIGINAL_HASH_PREFIX)?, hash.as_str())))
        .collect();
    let same = |name: &String| originals.get(name.as_str()) == found.get(name).map(String::as_str).as_ref();
    !originals.is_empty() && originals.len() == deciding.len() && deciding.iter().all(same)
}

/// The first 12 characters of a hash.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// The quantization of the base in training, from the adapter's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trained {
    /// Dense, or used as stored.
    AsStored,
    /// Quantized while loading.
    Quantized(Quantization),
    /// Not recorded.
    Unknown,
}

impl Trained {
    /// Reads the adapter's metadata.
    pub fn of(adapter: &peft::Adapter) -> Self {
        let metadata = adapter.metadata();
        match metadata.get(QUANTIZATION_KEY).map(String::as_str) {
            Some("none") => match metadata.get(ORIGINAL_QUANTIZATION_KEY) {
                // The base had been quantized before the run.
                Some(text) => Self::quantized(text),
                None => Self::AsStored,
            },
            Some(text) => Self::quantized(text),
            None => Self::Unknown,
        }
    }

    fn quantized(text: &str) -> Self {
        Quantization::from_text(text).map_or(Self::Unknown, Self::Quantized)
    }

    /// The patterns of the modules that stayed dense.
    pub fn keep(&self) -> &[String] {
        match self {
            Self::Quantized(quantization) => &quantization.keep,
            Self::AsStored | Self::Unknown => &[],
        }
    }
}
