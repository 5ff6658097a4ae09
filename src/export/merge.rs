//! Folding an adapter into its base: which weights, in which order, and when to refuse.
//!
//! The folder is filled beside its destination, read back, compared with the adapter on its base, and only then
//! renamed into place.

use std::collections::BTreeMap;
use std::path::Path;

use tune_kernels::KernelBackend;

use super::Error;
use super::base::{Identity, OpenedBase, Trained, fit};
use super::check::{self, Comparison, MAX_DIVERGENCE, Rows, Sides};
use super::folder::{self, Text};
use super::shards::{SHARD_BYTES, Written};
use super::weights::{Merged, Onto, Report};
use crate::adapter::peft;
use crate::adapter::target::Target;
use crate::adapter::whole::Whole;
use crate::files::{self, Existing};
use crate::model::{FloatDtype, tensors};
use crate::quant::spec::Spec;

/// Which weights the user wants the adapter folded into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The weights as the checkpoint has them.
    Original,
    /// Those weights after quantization to NF4 and back, which a QLoRA run trains on.
    Nf4,
}

/// Choices of a merge.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which weights; left out, the original ones, or what a quantized checkpoint has.
    pub onto: Option<Wanted>,
    /// The dtype of every tensor; left out, each keeps its own.
    pub dtype: Option<FloatDtype>,
    /// Let pass a base whose files are not those that the adapter records.
    pub any_hash: bool,
    /// The share of the adapter's effect that may be lost.
    pub max_divergence: f64,
    /// Bytes of tensors a file may hold.
    pub shard_bytes: u64,
    /// What to do when the destination is taken.
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

/// How far a merge has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Tensors written, of how many.
    Writing(usize, usize),
    /// Layers compared, of how many.
    Comparing(usize, usize),
}

/// What came of a merge.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the merged weights are made from, for people.
    pub onto: String,
    /// What merging did to the weights.
    pub report: Report,
    /// The quantization whose error the report has.
    pub measured: Option<Spec>,
    /// The comparison, and on which rows.
    pub comparison: Comparison,
    /// Bytes of the folder's files.
    pub bytes: u64,
    /// Number of the folder's files.
    pub files: usize,
}

/// An adapter and its base, ready to be merged.
pub struct Plan {
    /// The base.
    pub base: OpenedBase,
    /// The adapter.
    pub adapter: peft::Adapter,
    /// Its targets.
    pub targets: Vec<Target>,
    /// The modules that it has as a whole.
    pub wholes: Vec<Whole>,
    /// How sure it is that they belong together.
    pub identity: Identity,
    /// Tokenizer and template of the merged model.
    pub text: Text,
    /// What the delta is added to.
    pub onto: Onto,
    /// What the adapter was trained on.
    pub trained: Trained,
    options: Options,
}

impl Plan {
    /// Opens everything and checks that it fits; writes nothing.
    ///
    /// # Errors
    /// Wrong base, unusable adapter, a choice this base does not have.
    pub fn new(adapter: peft::Adapter, base: OpenedBase, options: Options) -> Result<Self, Error> {
        let trained = Trained::of(&adapter);
        let onto = choose(options.onto, &base, trained)?;
        let (targets, identity) = fit(&adapter, &base, options.any_hash)?;
        let wholes = adapter.wholes(&base.spec.wholes())?;
        let text = Text::open(&adapter, &base.folder)?;
        Ok(Self { base, adapter, targets, wholes, identity, text, onto, trained, options })
    }

    /// Merges into `out`: whole, and compared with the adapter on its base over `rows`, or not at all.
    ///
    /// # Errors
    /// The destination is taken or cannot be written, files can no longer be read, the comparison fails.
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
        let measured = match (self.onto, self.trained) {
            (Onto::Dequantized(spec), _) => Some(spec),
            (Onto::Original, Trained::Quantized(spec)) => Some(spec),
            (Onto::Original, Trained::Unknown) => Some(Spec::USUAL),
            (Onto::Original, Trained::AsStored) | (Onto::Stored, _) => None,
        };
        let trained = match self.trained {
            Trained::Quantized(spec) => Some(spec),
            Trained::AsStored | Trained::Unknown => None,
        };
        let metadata = self.metadata(&onto);
        let mut finished = None;
        files::write_folder_atomically(out, self.options.existing, |inside| -> Result<(), Error> {
            let merged = Merged {
                base: &self.base,
                adapter: &self.adapter,
                targets: &self.targets,
                wholes: &self.wholes,
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
            folder::write(inside, &self.base, &self.adapter, &self.text, dtype, &onto)?;
            let sides = Sides {
                base: &self.base,
                adapter: &self.adapter,
                targets: &self.targets,
                wholes: &self.wholes,
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

    /// What the weights are made from, in words.
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

    /// Whether the quantization that the weights go through is a guess.
    pub fn guesses_quantization(&self) -> bool {
        matches!(self.onto, Onto::Dequantized(_)) && self.trained == Trained::Unknown
    }

    /// The adapter's provenance, and what it was merged onto.
    fn metadata(&self, onto: &str) -> BTreeMap<String, String> {
        let mut metadata = self.adapter.metadata().clone();
        metadata.insert("tune.merged_onto".into(), onto.to_owned());
        metadata
    }
}

fn choose(wanted: Option<Wanted>, base: &OpenedBase, trained: Trained) -> Result<Onto, Error> {
    match (wanted, base.quantized) {
        (None | Some(Wanted::Nf4), true) => Ok(Onto::Stored),
        (Some(Wanted::Original), true) => Err(Error::Choice {
            message: format!(
                "{} is stored in 4 bits, so its original weights are not there: give the unquantized model as the \
                 base, or leave `--onto` out to merge onto the dequantized weights",
                base.name()
            ),
        }),
        (None | Some(Wanted::Original), false) => Ok(Onto::Original),
        (Some(Wanted::Nf4), false) => match trained {
            Trained::Quantized(spec) => Ok(Onto::Dequantized(spec)),
            Trained::Unknown => Ok(Onto::Dequantized(Spec::USUAL)),
            Trained::AsStored => Err(Error::Choice {
                message: "the adapter was trained on a base that was not quantized; merge onto the original weights \
                          (`--onto original`)"
                    .into(),
            }),
        },
    }
}

/// Number and length of a folder's files.
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
