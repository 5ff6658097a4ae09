//! Saves a base model in 4 bits, as bitsandbytes and transformers do, so that later runs need not read and quantize
//! the original weights again.
//!
//! Every projection of the decoder that does not stay dense is quantized as it is while loading, so that training on the
//! folder equals training on the original. Everything else is copied byte for byte. A file holds its header, then
//! scales, then codes, so each weight is quantized once for its scales and once for its codes. Double quantization
//! needs one more pass beforehand: the header's size depends on the digits of the mean of the scales. Memory: one
//! tensor in f32 and its quantized form.

mod beside;
mod losses;
pub mod report;

pub use losses::losses;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tune_kernels::nf4::Quantized;

use super::Error;
use super::base::{ORIGINAL_HASH_PREFIX, ORIGINAL_QUANTIZATION_KEY, OpenedBase};
use super::shards::{Entry, Shards, Written};
use super::weights::{parts_beside, safetensors_dtype};
use crate::assets::Dtype;
use crate::files::safetensors::TensorHeader;
use crate::files::{self, Existing};
use crate::model::DecoderSpec;
use crate::model::tensors::{self, Expected};
use crate::quant::bitsandbytes::write::{self, Plan};
use crate::quant::{self, spec::Quantization, spec::Spec};
use report::{Errors, TensorError};

/// Options of a quantization.
#[derive(Clone, Debug)]
pub struct Options {
    /// Block size, double quantization, and what stays dense.
    pub quantization: Quantization,
    /// Largest file of weights, in bytes of tensors.
    pub shard_bytes: u64,
    /// What to do if the destination exists.
    pub existing: Existing,
}

/// Progress of a quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Hashing the original files and measuring scales: steps done, and their total.
    Measuring(usize, usize),
    /// Tensors written, and their total.
    Writing(usize, usize),
}

/// The result of a quantization.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Number of quantized weights.
    pub quantized: usize,
    /// Number of tensors copied unchanged.
    pub kept: usize,
    /// Size of the original weight files, in bytes.
    pub bytes_before: u64,
    /// Size of the new weight files, in bytes.
    pub bytes: u64,
    /// Relative error: norm of the quantization error over the norm of the weights.
    pub error: f64,
    /// The weight with the largest relative error, and that error.
    pub worst: Option<(String, f64)>,
    /// The error of each quantized weight, in the order of the model.
    pub tensors: Vec<TensorError>,
}

/// Writes `base` in 4 bits to the folder `out`, which is complete or absent.
///
/// # Errors
/// The base is in 4 bits already, patterns of what stays dense do not fit it, it cannot be read or contains a value that
/// is not finite; the destination exists or cannot be written; or `stop` returned true.
pub fn quantize(
    base: &OpenedBase,
    out: &Path,
    options: Options,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Outcome, Error> {
    if base.quantized {
        return Err(Error::Choice {
            message: format!(
                "{} is stored in 4 bits already; use it directly as `base` in a recipe's `[model]` table",
                base.name()
            ),
        });
    }
    let Options { quantization, shard_bytes, existing } = options;
    let decoder = base.spec.clone().keeping(&quantization.keep).map_err(|problems| Error::Choice {
        message: problems.first().map_or_else(String::new, ToString::to_string),
    })?;
    let mut finished = None;
    files::write_folder_atomically(out, existing, |folder| -> Result<(), Error> {
        let work = Work::plan(base, &decoder, &quantization, progress, stop)?;
        let outcome = work.write(folder, shard_bytes, progress, stop)?;
        beside::write(folder, base, &decoder, &quantization)?;
        finished = Some(outcome);
        Ok(())
    })?;
    finished.ok_or(Error::Stopped)
}

/// The plan of the files to write.
struct Work<'a> {
    base: &'a OpenedBase,
    decoder: &'a DecoderSpec,
    blocks: Spec,
    /// The quantized weights, by the name of each of their tensors.
    plans: BTreeMap<String, usize>,
    planned: Vec<Plan>,
    entries: Vec<Entry>,
    kept: usize,
    metadata: BTreeMap<String, String>,
}

impl<'a> Work<'a> {
    /// Lays out every tensor; double quantization needs the mean of each weight's scales for that.
    fn plan(
        base: &'a OpenedBase,
        decoder: &'a DecoderSpec,
        quantization: &Quantization,
        progress: &mut dyn FnMut(Progress),
        stop: &dyn Fn() -> bool,
    ) -> Result<Self, Error> {
        let expected = tensors::expected(decoder);
        let total = 1 + expected.len();
        progress(Progress::Measuring(0, total));
        let metadata = metadata(base, quantization)?;
        let mut work = Self {
            base,
            decoder,
            blocks: quantization.blocks,
            plans: BTreeMap::new(),
            planned: Vec::new(),
            entries: Vec::with_capacity(expected.len()),
            kept: 0,
            metadata,
        };
        for (index, tensor) in expected.iter().enumerate() {
            if stop() {
                return Err(Error::Stopped);
            }
            work.add(tensor)?;
            progress(Progress::Measuring(index + 2, total));
        }
        let weights = base.folder.weights();
        let beside = parts_beside(weights, &tensors::check(decoder, weights, None)?);
        work.kept += beside.len();
        work.entries.extend(beside);
        Ok(work)
    }

    fn add(&mut self, tensor: &Expected) -> Result<(), Error> {
        let weights = self.base.folder.weights();
        let dtype = match weights.info(&tensor.name).map_or(Dtype::F32, |info| info.dtype) {
            // What 8-bit floats stand for.
            Dtype::F8_E4M3 => safetensors_dtype(tensors::checkpoint_dtype(self.decoder, weights)),
            dtype => dtype,
        };
        let parameters = tensor.shape.iter().product::<usize>() as u64;
        let stored = weights.stored_name(&tensor.name).to_owned();
        if tensor.dense {
            let header = TensorHeader { name: stored, dtype, shape: tensor.shape.clone() };
            self.entries.push(Entry { tensors: vec![header], parameters });
            self.kept += 1;
            return Ok(());
        }
        let shape = [tensor.shape[0], tensor.shape[1]];
        let Spec::Nf4 { double_quant, .. } = self.blocks;
        let offset = match double_quant {
            true => write::offset(&self.quantized(&tensor.name, shape)?.0),
            false => None,
        };
        let plan = Plan { weight: stored, shape, spec: self.blocks, dtype: torch_name(dtype), offset };
        let tensors = plan.tensors();
        self.plans.extend(tensors.iter().map(|part| (part.name.clone(), self.planned.len())));
        self.entries.push(Entry { tensors, parameters });
        self.planned.push(plan);
        Ok(())
    }

    /// A weight in 4 bits, and its original values in f32.
    fn quantized(&self, weight: &str, shape: [usize; 2]) -> Result<(Quantized, Vec<f32>), Error> {
        let values = self.base.folder.weights().read_floats::<f32>(weight)?;
        Ok((quant::nf4::quantize(&values, shape, self.blocks), values))
    }

    fn write(
        &self,
        folder: &Path,
        limit: u64,
        progress: &mut dyn FnMut(Progress),
        stop: &dyn Fn() -> bool,
    ) -> Result<Outcome, Error> {
        let weights = self.base.folder.weights();
        let (mut errors, mut measured) = (Errors::default(), BTreeSet::new());
        // The tensors of one weight are adjacent among the scales, and again among the codes.
        let mut last: Option<(usize, Quantized)> = None;
        let mut bytes = |header: &TensorHeader| -> Result<Vec<u8>, Error> {
            let Some(&index) = self.plans.get(&header.name) else { return Ok(weights.read(&header.name)?) };
            let plan = &self.planned[index];
            let quantized = match last.take() {
                Some((known, quantized)) if known == index => quantized,
                _ => {
                    let (quantized, values) = self.quantized(&plan.weight, plan.shape)?;
                    if measured.insert(index) {
                        errors.add(&plan.weight, &values, &quantized);
                    }
                    quantized
                }
            };
            let bytes = plan.bytes(&header.name, &quantized).map(|bytes| bytes.into_owned());
            last = Some((index, quantized));
            Ok(bytes.unwrap_or_default())
        };
        let shards = Shards { entries: self.entries.clone(), limit, metadata: &self.metadata };
        let mut written = |Written { done, total }| progress(Progress::Writing(done, total));
        shards.write(folder, &mut bytes, &mut written, stop)?;
        let places: BTreeMap<&str, usize> =
            self.planned.iter().enumerate().map(|(place, plan)| (plan.weight.as_str(), place)).collect();
        errors.tensors.sort_by_key(|tensor| places.get(tensor.tensor.as_str()));
        let (error, worst) = (errors.together(), errors.worst());
        Ok(Outcome {
            quantized: self.planned.len(),
            kept: self.kept,
            bytes_before: weights.total_bytes(),
            bytes: crate::assets::WeightFiles::open(folder)?.total_bytes(),
            error,
            worst,
            tensors: errors.tensors,
        })
    }
}

/// The error of each weight that `blocks` quantize, on a dense base. `progress` is called with weights done, and their total.
///
/// # Errors
/// The base cannot be read, or `stop` returned true.
pub fn errors(
    base: &OpenedBase,
    blocks: Spec,
    progress: &mut dyn FnMut(usize, usize),
    stop: &dyn Fn() -> bool,
) -> Result<Errors, Error> {
    let expected = tensors::expected(&base.spec);
    let quantized: Vec<_> = expected.iter().filter(|tensor| !tensor.dense).collect();
    let mut errors = Errors::default();
    for (index, tensor) in quantized.iter().enumerate() {
        if stop() {
            return Err(Error::Stopped);
        }
        let values = base.folder.weights().read_floats::<f32>(&tensor.name)?;
        let shape = [tensor.shape[0], tensor.shape[1]];
        errors.add(&tensor.name, &values, &quant::nf4::quantize(&values, shape, blocks));
        progress(index + 1, quantized.len());
    }
    Ok(errors)
}

/// Provenance metadata of the files.
fn metadata(base: &OpenedBase, quantization: &Quantization) -> Result<BTreeMap<String, String>, Error> {
    let mut metadata = BTreeMap::from([
        ("tune.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        (ORIGINAL_QUANTIZATION_KEY.to_owned(), quantization.to_string()),
    ]);
    if let Some(hub) = &base.base.hub {
        metadata.insert("tune.original".into(), hub.id.clone());
        metadata.insert("tune.original_revision".into(), hub.commit.clone());
    }
    for file in base.folder.files_sha256()? {
        metadata.insert(format!("{ORIGINAL_HASH_PREFIX}{}", file.name), file.sha256);
    }
    Ok(metadata)
}

fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    }
}
