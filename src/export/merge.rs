//! Merging an adapter into its base: which weights, in which order, and when to refuse.
//!
//! The folder is written under a temporary name, read back, compared with the adapter on its base, and only then
//! renamed to its destination.

use std::collections::BTreeMap;
use std::path::Path;

use tune_kernels::KernelBackend;

use super::Error;
use super::base::{Identity, OpenedBase, Trained, fit};
use super::check::{self, Comparison, MAX_DIVERGENCE, Rows, Sides};
use super::fidelity::Adapted;
use super::folder::{self, Text};
use super::shards::{SHARD_BYTES, Written};
use super::weights::{Merged, Onto, Report, dense};
use crate::adapter::peft;
use crate::adapter::saved::SavedModule;
use crate::adapter::target::Target;
use crate::files::{self, Existing};
use crate::model::{DecoderSpec, FloatDtype, tensors};
use crate::quant::spec::Spec;

/// The weights to merge into, as the user chose them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The checkpoint's own weights.
    Original,
    /// The weights after quantization to NF4 and back, as in QLoRA training.
    Nf4,
}

/// Options of a merge.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The weights to merge into; `None`: the original ones, or a quantized checkpoint's dequantized ones.
    pub onto: Option<Wanted>,
    /// The dtype of every tensor; `None` keeps each tensor's own.
    pub dtype: Option<FloatDtype>,
    /// Accept a base whose file hashes differ from those that the adapter records.
    pub any_hash: bool,
    /// Largest accepted share of the adapter's effect lost to rounding.
    pub max_divergence: f64,
    /// Largest file of weights, in bytes of tensors.
    pub shard_bytes: u64,
    /// What to do if the destination exists.
    pub existing: Existing,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            onto: None,
            dtype: None,
            any_hash: false,
            max_divergence: MAX_DIVERGENCE,
            shard_bytes: SHARD_BYTES,
            existing: Existing::Refuse,
        }
    }
}

/// Progress of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Tensors written, and their total.
    Writing(usize, usize),
    /// Layers compared, and their total.
    Comparing(usize, usize),
}

/// The result of a merge.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The weights it was merged onto, for messages.
    pub onto: String,
    /// Norms of the changes to the weights.
    pub report: Report,
    /// The quantization whose error the report contains.
    pub measured: Option<Spec>,
    /// The comparison with the adapter on its base.
    pub comparison: Comparison,
    /// Total size of the folder's files, in bytes.
    pub bytes: u64,
    /// Number of files in the folder.
    pub files: usize,
}

/// An adapter and its base, opened and checked, ready to merge.
pub struct Plan {
    /// The base.
    pub base: OpenedBase,
    /// The adapter.
    pub adapter: peft::Adapter,
    /// Its targets.
    pub targets: Vec<Target>,
    /// Its modules to save.
    pub saved_modules: Vec<SavedModule>,
    /// The merged model: the base, untied where the adapter makes head and embeddings differ.
    pub spec: DecoderSpec,
    /// Evidence that adapter and base belong together.
    pub identity: Identity,
    /// Tokenizer and template of the merged model.
    pub text: Text,
    /// The weights that the delta is added to.
    pub onto: Onto,
    /// The quantization of the base in training.
    pub trained: Trained,
    options: Options,
}

impl Plan {
    /// Opens adapter and base and checks that they fit; writes nothing.
    ///
    /// # Errors
    /// The base is the wrong one, the adapter is unusable, or an option does not apply to this base.
    pub fn new(adapter: peft::Adapter, base: OpenedBase, options: Options) -> Result<Self, Error> {
        let trained = Trained::of(&adapter);
        let onto = choose(options.onto, &base, &trained)?;
        let (targets, identity) = fit(&adapter, &base, options.any_hash)?;
        let base = base.keeping(trained.keep())?;
        let tables = base.spec.tables();
        let mut spec = base.spec.clone();
        let embedding = format!("{}.weight", spec.paths.embedding);
        let head = format!("{}.weight", spec.paths.head);
        let mut table = |name: &str| {
            let name = if spec.tied && name == head { embedding.as_str() } else { name };
            dense(&base, &tensors::check(&base.spec, base.folder.weights(), None)?, name)
        };
        let adapter = match adapter.adapted_tables().is_empty() {
            true => adapter,
            false => adapter.fold_tables(&tables, &mut table)?,
        };
        let saved_modules = adapter.saved_modules(&tables)?;
        let (adapter, saved_modules) = match spec.tied && !saved_modules.is_empty() {
            false => (adapter, saved_modules),
            true => {
                let (adapter, saved_modules, is_one) =
                    adapter.split_tied_table(saved_modules, &tables, &mut || table(&embedding))?;
                spec.tied = is_one;
                (adapter, saved_modules)
            }
        };
        let text = Text::open(&adapter, &base.folder)?;
        Ok(Self { base, adapter, targets, saved_modules, spec, identity, text, onto, trained, options })
    }

    /// Merges into `out`. The folder appears only if the comparison with the adapter on its base over `rows` passes.
    ///
    /// # Errors
    /// The destination exists or cannot be written, a file cannot be read, or the comparison fails.
    pub fn run<B: KernelBackend>(
        &self,
        out: &Path,
        rows: &Rows,
        device: &B::Device,
        progress: &mut dyn FnMut(Progress),
        stop: &dyn Fn() -> bool,
    ) -> Result<Outcome, Error> {
        let weights = self.base.folder.weights();
        let onto = self.onto_name();
        let dtype = self.options.dtype.unwrap_or_else(|| tensors::checkpoint_dtype(&self.base.spec, weights));
        let measured = match (self.onto, &self.trained) {
            (Onto::Dequantized(spec), _) => Some(spec),
            (Onto::Original, Trained::Quantized(quantization)) => Some(quantization.blocks),
            (Onto::Original, Trained::Unknown) => Some(Spec::USUAL),
            (Onto::Original, Trained::AsStored) | (Onto::Stored, _) => None,
        };
        let trained = match &self.trained {
            Trained::Quantized(quantization) => Some(quantization.blocks),
            Trained::AsStored | Trained::Unknown => None,
        };
        let metadata = self.metadata(&onto);
        let mut finished = None;
        files::write_folder_atomically(out, self.options.existing, |inside| -> Result<(), Error> {
            let merged = Merged {
                base: &self.base,
                spec: &self.spec,
                adapter: &self.adapter,
                targets: &self.targets,
                saved_modules: &self.saved_modules,
                onto: self.onto,
                measured,
                dtype: self.options.dtype,
                shard_bytes: self.options.shard_bytes,
                metadata: &metadata,
            };
            let mut written = |written: Written| {
                progress(Progress::Writing(written.done, written.total));
            };
            let report = merged.write(inside, &mut written, stop)?;
            folder::write(inside, &self.base, self.spec.tied, &self.adapter, &self.text, dtype, &onto)?;
            let sides = Sides {
                base: &self.base,
                adapter: &self.adapter,
                targets: &self.targets,
                saved_modules: &self.saved_modules,
                onto: self.onto,
                trained,
                merged: inside,
            };
            let mut compared = |done, total| progress(Progress::Comparing(done, total));
            let comparison = check::compare::<B>(&sides, rows, device, &mut compared, stop)?;
            comparison.judge(&report, self.options.max_divergence)?;
            let (files, bytes) = size(inside)?;
            finished = Some(Outcome { onto: onto.clone(), report, measured, comparison, bytes, files });
            Ok(())
        })?;
        finished.ok_or(Error::Stopped)
    }

    /// The weights it is merged onto, in words.
    pub fn onto_name(&self) -> String {
        match self.onto {
            Onto::Original => "the original weights".into(),
            Onto::Dequantized(Spec::Nf4 { block_size, double_quant }) => format!(
                "the weights quantized to NF4 (blocks of {block_size}{}) and back",
                if double_quant { ", double quantization" } else { "" }
            ),
            Onto::Stored => "the dequantized weights of the 4-bit checkpoint".into(),
        }
    }

    /// The adapter as it was trained.
    pub fn adapted(&self) -> Adapted<'_> {
        let quantization = match &self.trained {
            Trained::Quantized(quantization) if !self.base.quantized => Some(quantization.blocks),
            _ => None,
        };
        let Self { adapter, targets, saved_modules, .. } = self;
        Adapted { adapter, targets, saved_modules, quantization }
    }

    /// Whether the quantization applied to the weights is an assumption.
    pub fn guesses_quantization(&self) -> bool {
        matches!(self.onto, Onto::Dequantized(_)) && self.trained == Trained::Unknown
    }

    /// The adapter's provenance metadata, and the weights it was merged onto.
    fn metadata(&self, onto: &str) -> BTreeMap<String, String> {
        let mut metadata = self.adapter.metadata().clone();
        metadata.insert("tune.merged_onto".into(), onto.to_owned());
        metadata
    }
}

fn choose(wanted: Option<Wanted>, base: &OpenedBase, trained: &Trained) -> Result<Onto, Error> {
    match (wanted, base.quantized) {
        (None | Some(Wanted::Nf4), true) => Ok(Onto::Stored),
        (Some(Wanted::Original), true) => Err(Error::Choice {
            message: format!(
                "{} is stored in 4 bits and has no original weights; name the unquantized model with `--base`, or omit \
                 `--onto` to merge onto the dequantized weights",
                base.name()
            ),
        }),
        (None | Some(Wanted::Original), false) => Ok(Onto::Original),
        (Some(Wanted::Nf4), false) => match trained {
            Trained::Quantized(quantization) => Ok(Onto::Dequantized(quantization.blocks)),
            Trained::Unknown => Ok(Onto::Dequantized(Spec::USUAL)),
            Trained::AsStored => Err(Error::Choice {
                message: "the adapter was trained on an unquantized base; merge onto the original weights \
                          (`--onto original`)"
                    .into(),
            }),
        },
    }
}

/// Number and total size of a folder's files.
fn size(folder: &Path) -> Result<(usize, u64), Error> {
    let fail = |source| files::Error::io(files::Action::Read, folder)(source);
    let (mut count, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let about = entry.and_then(|entry| entry.metadata()).map_err(fail)?;
        count += 1;
        bytes += about.len();
    }
    Ok((count, bytes))
}
