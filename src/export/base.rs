//! Is this the base that an adapter was trained on? Sizes and family always decide; hashes do where the adapter has
//! them (`tune.base_sha256.<file>` in its metadata), and the user may overrule those alone.

use std::collections::BTreeMap;

use super::Error;
use crate::adapter::peft;
use crate::adapter::target::Target;
use crate::assets::folder::digest;
use crate::assets::{Base, ModelDir};
use crate::model::{DecoderSpec, family, tensors};
use crate::quant::spec::Spec;

/// Prefix of the metadata keys that hold hashes of the base's files.
pub const HASH_PREFIX: &str = "tune.base_sha256.";
/// Metadata key of the base's family.
pub const FAMILY_KEY: &str = "tune.base_family";
/// Metadata key of the quantization that the base was trained on with.
pub const QUANTIZATION_KEY: &str = "tune.quantization";
/// Prefix of the metadata keys that hold hashes of the files that a 4-bit base was made from: in its own files, and in
/// those of adapters trained on it.
pub const ORIGINAL_HASH_PREFIX: &str = "tune.original_sha256.";
/// Metadata key, in the same places, of the quantization that made the base.
pub const ORIGINAL_QUANTIZATION_KEY: &str = "tune.original_quantization";

/// A base model, open, with its tensors checked.
#[derive(Debug)]
pub struct OpenedBase {
    /// Where it came from.
    pub base: Base,
    /// Its folder.
    pub folder: ModelDir,
    /// What it is.
    pub spec: DecoderSpec,
    /// Whether any of its projections are stored in 4 bits.
    pub quantized: bool,
    /// The blocks of the projections, where all of them are stored in 4 bits and alike.
    pub blocks: Option<Spec>,
}

impl OpenedBase {
    /// Opens a folder that was found; reads no tensor.
    ///
    /// # Errors
    /// Not a model that can be run, or tensors that do not fit it.
    pub fn open(base: Base) -> Result<Self, Error> {
        let folder = ModelDir::open(&base.folder)?;
        let spec = family::decoder_spec(folder.config())?;
        let checked = tensors::check(&spec, folder.weights(), None)?;
        let (quantized, blocks) = (!checked.quantized.is_empty(), checked.blocks(&spec));
        Ok(Self { base, folder, spec, quantized, blocks })
    }

    /// Its name for people and model cards: the hub id, else the folder.
    pub fn name(&self) -> String {
        match &self.base.hub {
            Some(hub) => hub.id.clone(),
            None => self.base.folder.display().to_string(),
        }
    }
}

/// How sure it is that a base is the right one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Files whose content is what the adapter's metadata says.
    pub same: Vec<String>,
    /// Weights or config.json that are not; they were let pass.
    pub overruled: Vec<String>,
    /// Things to tell that decide nothing.
    pub notes: Vec<String>,
}

/// Fits an adapter onto a base: its targets, and how sure it is that they belong together.
///
/// With `any_hash` other hashes than the recorded ones are let pass.
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
            vec![format!("it was trained on a {trained}; {} is a {}", base.name(), base.spec.family)],
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
        identity.notes.push(
            "the adapter does not record hashes of its base; that its sizes fit is all that is known".into(),
        );
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
                "{name} has SHA-256 {}…, the adapter records {}…",
                short(own),
                short(hash)
            )),
            None if weights => {
                identity.overruled.push(format!("{name}, which the adapter records, is not there"))
            }
            Some(_) => {
                identity.notes.push(format!("{name} of the base is not the one that was trained with"))
            }
            None => {
                identity.notes.push(format!("{name}, which was trained with, is not in the base's folder"))
            }
        }
    }
    for name in deciding.iter().filter(|name| !recorded.contains_key(name.as_str())) {
        identity.overruled.push(format!("{name} is not among the files that the adapter records"));
    }
    if !identity.overruled.is_empty() && is_original(metadata, &deciding, &found) {
        identity.overruled.clear();
        identity.same.extend(deciding);
        identity
            .notes
            .push("it was trained on these weights in 4 bits, as `tune quantize` wrote them".into());
    }
    Ok(identity)
}

/// Whether the files are those that the 4-bit base of the adapter was made from.
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

/// Enough of a hash to tell two apart.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// What the adapter says of the quantization it was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// On a dense base, or one taken as it was stored.
    AsStored,
    /// On a base quantized while it was loaded.
    Quantized(Spec),
    /// Nothing is known.
    Unknown,
}

impl Trained {
    /// Reads the adapter's metadata.
    pub fn of(adapter: &peft::Adapter) -> Self {
        let metadata = adapter.metadata();
        match metadata.get(QUANTIZATION_KEY).map(String::as_str) {
            Some("none") => match metadata.get(ORIGINAL_QUANTIZATION_KEY) {
                // The quantization that its base went through before the run.
                Some(text) => Spec::from_text(text).map_or(Self::Unknown, Self::Quantized),
                None => Self::AsStored,
            },
            Some(text) => Spec::from_text(text).map_or(Self::Unknown, Self::Quantized),
            None => Self::Unknown,
        }
    }
}
