//! `tune export --gguf` and `--gguf-lora`: models and adapters for llama.cpp and Ollama.

use std::collections::BTreeMap;
use std::path::Path;

use super::adapters::{BaseChoice, keep_sources};
use super::fidelity::{Fidelity, HeldOut};
use super::{Environment, Error};
use crate::adapter::peft;
use crate::assets::resolve_base;
use crate::export::Consumer;
use crate::export::base::{OpenedBase, fit};
use crate::export::folder::Text;
use crate::export::gguf::{FileType, Lora, Model, lora, model, provenance};
use crate::export::merge::{Options, Plan};
use crate::export::shards::{SHARD_BYTES, Written};
use crate::export::weights::Merged;
use crate::files::Existing;
use crate::model::FloatDtype;
use crate::recipe::DeviceSpec;
use crate::{export, model as decoder};

/// The source of a GGUF file: a model, or an adapter merged into its base.
pub enum Source {
    /// A model.
    Model {
        /// Its folder.
        model: Box<OpenedBase>,
        /// Its tokenizer and template.
        text: Box<Text>,
    },
    /// An adapter and its base.
    Adapter(Box<Plan>),
}

impl Source {
    /// Opens an adapter's folder with its base, or a model: a folder, or a hub id in the local cache. Writes nothing.
    ///
    /// # Errors
    /// The folder is unusable, adapter and base do not belong together, or `--base` or `--onto` is given for a model.
    pub fn open(
        source: &Path,
        base: BaseChoice<'_>,
        options: Options,
        environment: &Environment<'_>,
    ) -> Result<Self, Error> {
        // A merged model may have kept the configuration of the adapter that is in it.
        let has = |name: &str| source.join(name).is_file();
        if has(peft::CONFIG_FILE) && (has(peft::TENSORS_FILE) || !has("config.json")) {
            let adapter = peft::Adapter::open_with_tables(source)?;
            let base = base.open(&adapter, environment)?;
            return Ok(Self::Adapter(Box::new(Plan::new(adapter, base, options)?)));
        }
        if base.base.is_some() || options.onto.is_some() {
            let option = if base.base.is_some() { "--base" } else { "--onto" };
            let message = format!(
                "`{option}` applies to adapters, and {} contains none ({})",
                source.display(),
                peft::CONFIG_FILE
            );
            return Err(export::Error::Choice { message }.into());
        }
        let Some(name) = source.to_str() else {
            let message =
                format!("{} is not valid UTF-8: rename the folder, or make a link to it", source.display());
            return Err(export::Error::Choice { message }.into());
        };
        let found = resolve_base(name, base.revision, environment.hub_cache).map_err(decoder::Error::from)?;
        let model = OpenedBase::open(found)?;
        let text = Text::of_model(&model.folder)?;
        Ok(Self::Model { model: Box::new(model), text: Box::new(text) })
    }

    /// The model, or the adapter's base.
    pub fn base(&self) -> &OpenedBase {
        match self {
            Self::Model { model, .. } => model,
            Self::Adapter(plan) => &plan.base,
        }
    }

    /// Writes the file and its Modelfile into a folder `out`, which is complete or absent.
    ///
    /// # Errors
    /// As [`Model::write`].
    pub fn export(
        &self,
        file_type: FileType,
        out: &Path,
        existing: Existing,
        progress: &mut dyn FnMut(Written),
        environment: &Environment<'_>,
    ) -> Result<model::Outcome, Error> {
        match self {
            Self::Model { model, .. } => keep_sources(out, &[model.folder.root()])?,
            Self::Adapter(plan) => keep_sources(out, &[plan.adapter.folder(), plan.base.folder.root()])?,
        }
        self.with_file(file_type, |file| file.write(out, existing, progress, environment.stop))
    }

    /// Measures the file in `out` that [`Self::export`] wrote.
    ///
    /// # Errors
    /// As [`HeldOut::measure`].
    pub fn measure(
        &self,
        file_type: FileType,
        out: &Path,
        rows: &HeldOut,
        device: DeviceSpec,
        progress: &mut dyn FnMut(usize, usize),
        environment: &Environment<'_>,
    ) -> Result<Fidelity, Error> {
        let weights = self.with_file(file_type, |file| file.read_back(out))?;
        let (adapted, spec) = match self {
            Self::Model { model, .. } => (None, &model.spec),
            Self::Adapter(plan) => (Some(plan.adapted()), &plan.spec),
        };
        rows.measure(self.base(), adapted, (&weights, spec), device, progress, environment)
    }

    fn with_file<T>(
        &self,
        file_type: FileType,
        work: impl FnOnce(&Model<'_>) -> Result<T, export::Error>,
    ) -> Result<T, Error> {
        match self {
            Self::Model { model, text } => {
                let provenance = provenance::of_model(model);
                Ok(work(&Model { base: model, merged: None, text, file_type, provenance })?)
            }
            Self::Adapter(plan) => {
                let merged = Merged {
                    base: &plan.base,
                    spec: &plan.spec,
                    adapter: &plan.adapter,
                    targets: &plan.targets,
                    saved_modules: &plan.saved_modules,
                    onto: plan.onto,
                    measured: None,
                    dtype: None,
                    shard_bytes: SHARD_BYTES,
                    metadata: &BTreeMap::new(),
                };
                let provenance = provenance::of_adapter(&plan.base, &plan.adapter, Some(&plan.onto_name()))?;
                let (base, text) = (&plan.base, &plan.text);
                Ok(work(&Model { base, merged: Some(&merged), text, file_type, provenance })?)
            }
        }
    }
}

/// Writes an adapter alone, and its Modelfile, into a folder `out`, which is complete or absent.
///
/// # Errors
/// Adapter or base is unusable, or they do not belong together; as [`Lora::write`].
pub fn export_lora(
    adapter: &Path,
    base: BaseChoice<'_>,
    any_hash: bool,
    dtype: FloatDtype,
    out: &Path,
    existing: Existing,
    environment: &Environment<'_>,
) -> Result<lora::Outcome, Error> {
    let adapter = peft::Adapter::open(adapter)?;
    if let Err(reason) = Consumer::LlamaCpp.knows(adapter.config()) {
        let message = format!(
            "{}: {reason}, so llama.cpp cannot load it as an adapter; export it merged into its base with `--gguf q8_0`, or \
             merge it with `tune merge`",
            adapter.folder().display()
        );
        return Err(export::Error::Choice { message }.into());
    }
    let base = base.open(&adapter, environment)?;
    let (targets, _) = fit(&adapter, &base, any_hash)?;
    keep_sources(out, &[adapter.folder(), base.folder.root()])?;
    let text = Text::open(&adapter, &base.folder)?;
    let provenance = provenance::of_adapter(&base, &adapter, None)?;
    let file = Lora { adapter: &adapter, targets: &targets, base: &base, text: &text, dtype, provenance };
    Ok(file.write(out, existing)?)
}
