//! Merged weights, streamed to disk: the header first, then one tensor at a time.
//!
//! `W′ = round(W + scaling · B·A)`, with DoRA each row rescaled to its magnitude: W is read (or dequantized) to f32,
//! the sum is computed in f32 and rounded once to the output dtype. Tensors without an adapter are copied byte for byte
//! if their dtype stays. Memory: one tensor in f32 and its sources. A tied output head is not written, unless the adapter
//! makes it differ from the embeddings.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::Error;
use super::base::OpenedBase;
use super::delta::{Pair, square_of, square_of_difference};
use super::shards::{Entry, Shards, Written};
use crate::adapter::peft;
use crate::adapter::saved::SavedModule;
use crate::adapter::target::Target;
use crate::assets::{Dtype, WeightFiles};
use crate::files::safetensors::TensorHeader;
use crate::model::tensors::{self, Checked, Expected};
use crate::model::{DecoderSpec, FloatDtype};
use crate::quant::{self, spec::Spec};

/// The weights that the delta is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// The checkpoint's own weights.
    Original,
    /// The weights after quantization and dequantization, as in QLoRA training.
    Dequantized(Spec),
    /// The dequantized weights of a 4-bit checkpoint.
    Stored,
}

/// Changes to the projections of one layer, as Frobenius norms over all of its targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerChange {
    /// The layer, from 0.
    pub layer: usize,
    /// Norm of the weights before merging.
    pub weight: f64,
    /// Norm of the delta.
    pub delta: f64,
    /// Norm of the rounding error.
    pub rounding: f64,
    /// Norm of the quantization error of the original weights; `None` if unknown.
    pub quantization: Option<f64>,
}

/// Changes to the weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Layer by layer.
    pub layers: Vec<LayerChange>,
    /// Frobenius norm of the rounding error over every tensor written.
    pub rounding: f64,
}

impl Report {
    /// Frobenius norm of the delta over all targets.
    pub fn delta(&self) -> f64 {
        self.layers.iter().map(|layer| layer.delta.powi(2)).sum::<f64>().sqrt()
    }
}

/// The inputs of the merged weights.
pub struct Merged<'a> {
    /// The base.
    pub base: &'a OpenedBase,
    /// The merged model: the base, perhaps untied.
    pub spec: &'a DecoderSpec,
    /// The adapter.
    pub adapter: &'a peft::Adapter,
    /// Its targets on this base.
    pub targets: &'a [Target],
    /// Its modules to save, which replace the base's.
    pub saved_modules: &'a [SavedModule],
    /// The weights that the delta is added to.
    pub onto: Onto,
    /// The quantization whose error is measured, if the base is dense.
    pub measured: Option<Spec>,
    /// The dtype of every tensor; `None` keeps each tensor's own.
    pub dtype: Option<FloatDtype>,
    /// Largest file of weights, in bytes of tensors.
    pub shard_bytes: u64,
    /// Metadata of the files.
    pub metadata: &'a BTreeMap<String, String>,
}

impl Merged<'_> {
    /// Writes the weights into a folder: `model.safetensors`, or shards and their index.
    ///
    /// # Errors
    /// The base cannot be read, a file cannot be written, a sum overflows its dtype, or `stop` returned true.
    pub fn write(
        &self,
        folder: &Path,
        progress: &mut dyn FnMut(Written),
        stop: &dyn Fn() -> bool,
    ) -> Result<Report, Error> {
        let checked = tensors::check(&self.base.spec, self.base.folder.weights(), None)?;
        let mut sources: BTreeMap<String, Expected> = BTreeMap::new();
        let mut entries = Vec::new();
        for tensor in tensors::expected(self.spec) {
            let name = self.base.folder.weights().stored_name(&tensor.name).to_owned();
            let (dtype, shape) = (self.dtype_of(&tensor, &checked), tensor.shape.clone());
            let header = TensorHeader { name: name.clone(), dtype, shape };
            entries.push(Entry { parameters: elements(&tensor), tensors: vec![header] });
            sources.insert(name, tensor);
        }
        entries.extend(parts_beside(self.base.folder.weights(), &checked));
        let mut changes = Changes { layers: BTreeMap::new(), rounding: 0.0 };
        let shards = Shards { entries, limit: self.shard_bytes, metadata: self.metadata };
        let mut bytes = |header: &TensorHeader| match sources.get(&header.name) {
            Some(tensor) => self.bytes(tensor, header.dtype, &checked, &mut changes),
            None => Ok(self.base.folder.weights().read(&header.name)?),
        };
        shards.write(folder, &mut bytes, progress, stop)?;
        let layers = changes.layers.into_values().map(Change::finish).collect();
        Ok(Report { layers, rounding: changes.rounding.sqrt() })
    }

    /// The output dtype of a tensor: the requested one, else its own, else (if quantized) the model's.
    fn dtype_of(&self, tensor: &Expected, checked: &Checked) -> Dtype {
        let weights = self.base.folder.weights();
        match (self.dtype, weights.info(&tensor.name)) {
            (Some(dtype), _) => safetensors_dtype(dtype),
            (None, Some(info))
                if !checked.quantized.contains_key(&tensor.name) && info.dtype != Dtype::F8_E4M3 =>
            {
                info.dtype
            }
            _ => safetensors_dtype(tensors::checkpoint_dtype(&self.base.spec, weights)),
        }
    }

    /// The little-endian bytes of one merged tensor.
    fn bytes(
        &self,
        tensor: &Expected,
        dtype: Dtype,
        checked: &Checked,
        changes: &mut Changes,
    ) -> Result<Vec<u8>, Error> {
        let weights = self.base.folder.weights();
        let name = tensor.name.as_str();
        let same_dtype = weights.info(name).is_some_and(|info| info.dtype == dtype);
        let untouched = self.target(tensor).is_none()
            && self.requantized(tensor, checked).is_none()
            && !checked.quantized.contains_key(name)
            && self.saved(name).is_none();
        if untouched && same_dtype {
            return Ok(weights.read(name)?);
        }
        let Sum { values, change } = self.sum(tensor, checked)?;
        let (bytes, rounding) = encode(name, &values, dtype)?;
        changes.rounding += rounding;
        if let Some(change) = change {
            changes.add(Change { rounding, ..change });
        }
        Ok(bytes)
    }

    /// One tensor of the merged model in f32, not yet rounded.
    pub(super) fn sum(&self, tensor: &Expected, checked: &Checked) -> Result<Sum, Error> {
        let name = tensor.name.as_str();
        if let Some(saved) = self.saved(name) {
            return Ok(Sum { values: self.adapter.saved_values(saved)?, change: None });
        }
        let stored = checked.quantized.contains_key(name);
        let target = self.target(tensor);
        let mut values = dense(self.base, checked, name)?;
        let requantized = self.requantized(tensor, checked);
        let measured = self.measured.filter(|_| !stored && target.is_some());
        // What stays dense has no error.
        let mut quantization = measured.filter(|_| tensor.dense).map(|_| 0.0);
        if let Some(spec) = requantized.or(measured.filter(|_| !tensor.dense)) {
            let shape = [tensor.shape[0], tensor.shape[1]];
            let dequantized = quant::nf4::quantize(&values, shape, spec).dequantize();
            quantization = Some(square_of_difference(&values, &dequantized));
            if requantized.is_some() {
                values = dequantized;
            }
        }
        let Some(target) = target else { return Ok(Sum { values, change: None }) };
        let weight = square_of(&values);
        let delta = Pair::read(self.adapter, target)?.add_to(&mut values);
        let change = Change { layer: target.module.layer, weight, delta, rounding: 0.0, quantization };
        Ok(Sum { values, change: Some(change) })
    }

    /// The quantization that a tensor is passed through before the delta is added.
    fn requantized(&self, tensor: &Expected, checked: &Checked) -> Option<Spec> {
        match self.onto {
            Onto::Dequantized(spec) if !tensor.dense && !checked.quantized.contains_key(&tensor.name) => {
                Some(spec)
            }
            _ => None,
        }
    }

    /// The adapter's saved module that replaces a tensor.
    fn saved(&self, name: &str) -> Option<&SavedModule> {
        self.saved_modules.iter().find(|saved| name.strip_suffix(".weight") == Some(&saved.path))
    }

    /// Whether the adapter changes a tensor.
    pub(super) fn is_adapted(&self, tensor: &Expected) -> bool {
        self.target(tensor).is_some() || self.saved(&tensor.name).is_some()
    }

    fn target(&self, tensor: &Expected) -> Option<&Target> {
        let path = tensor.name.strip_suffix(".weight").filter(|_| tensor.projection)?;
        self.targets.iter().find(|target| target.module.path == path)
    }
}

/// The tensors of the parts beside a text decoder, which are copied as they are.
pub(super) fn parts_beside(weights: &WeightFiles, checked: &Checked) -> Vec<Entry> {
    let entry = |name: &String| {
        let info = weights.info(name)?;
        let name = weights.stored_name(name).to_owned();
        let header = TensorHeader { name, dtype: info.dtype, shape: info.shape.clone() };
        Some(Entry { parameters: info.elements() as u64, tensors: vec![header] })
    };
    checked.skipped.iter().filter_map(entry).collect()
}

/// A merged tensor in f32.
pub(super) struct Sum {
    /// Its values.
    pub(super) values: Vec<f32>,
    /// Squared norms of its changes; `None` for tensors without an adapter.
    change: Option<Change>,
}

/// One tensor of a base in f32, dequantized if it is stored in 4 bits.
pub(super) fn dense(base: &OpenedBase, checked: &Checked, name: &str) -> Result<Vec<f32>, Error> {
    let weights = base.folder.weights();
    let Some(stored) = checked.quantized.get(name) else { return Ok(weights.read_floats::<f32>(name)?) };
    let quantized = stored.read(weights)?;
    quantized
        .validate()
        .map_err(|error| quant::Error::FourBit { weight: name.to_owned(), message: error.to_string() })?;
    Ok(quantized.dequantize())
}

/// Sums of squares over the targets of a layer.
struct Change {
    layer: usize,
    weight: f64,
    delta: f64,
    rounding: f64,
    quantization: Option<f64>,
}

impl Change {
    fn finish(self) -> LayerChange {
        LayerChange {
            layer: self.layer,
            weight: self.weight.sqrt(),
            delta: self.delta.sqrt(),
            rounding: self.rounding.sqrt(),
            quantization: self.quantization.map(f64::sqrt),
        }
    }
}

struct Changes {
    layers: BTreeMap<usize, Change>,
    rounding: f64,
}

impl Changes {
    fn add(&mut self, more: Change) {
        match self.layers.get_mut(&more.layer) {
            None => _ = self.layers.insert(more.layer, more),
            Some(sum) => {
                sum.weight += more.weight;
                sum.delta += more.delta;
                sum.rounding += more.rounding;
                // One unknown error makes that of the layer unknown.
                sum.quantization = sum.quantization.zip(more.quantization).map(|(sum, more)| sum + more);
            }
        }
    }
}

/// Rounds to a dtype, once; also returns the squared norm of the rounding error.
fn encode(name: &str, values: &[f32], dtype: Dtype) -> Result<(Vec<u8>, f64), Error> {
    match dtype {
        Dtype::BF16 => round(name, values, "bf16", bf16::from_f32, bf16::to_f32, bf16::to_le_bytes),
        Dtype::F16 => round(name, values, "f16", f16::from_f32, f16::to_f32, f16::to_le_bytes),
        _ => round(name, values, "f32", |value| value, |value| value, f32::to_le_bytes),
    }
}

fn round<T: Copy, const W: usize>(
    name: &str,
    values: &[f32],
    dtype: &'static str,
    from: impl Fn(f32) -> T + Sync,
    back: impl Fn(T) -> f32 + Sync,
    bytes: impl Fn(T) -> [u8; W] + Sync,
) -> Result<(Vec<u8>, f64), Error> {
    const PIECE: usize = 1 << 16;
    let mut encoded = vec![0; values.len() * W];
    let pieces = encoded.par_chunks_mut(PIECE * W).zip(values.par_chunks(PIECE)).enumerate();
    let squares: Vec<f64> = pieces
        .map(|(piece, (encoded, values))| {
            let mut square = 0.0;
            let (slots, _) = encoded.as_chunks_mut::<W>();
            for (position, (slot, value)) in slots.iter_mut().zip(values).enumerate() {
                let rounded = from(*value);
                *slot = bytes(rounded);
                let rounded = back(rounded);
                if !rounded.is_finite() {
                    let (tensor, element) = (name.to_owned(), piece * PIECE + position);
                    return Err(Error::Overflow { tensor, element, value: *value, dtype });
                }
                square += (f64::from(*value) - f64::from(rounded)).powi(2);
            }
            Ok(square)
        })
        .collect::<Result<_, Error>>()?;
    Ok((encoded, squares.iter().sum()))
}

fn elements(tensor: &Expected) -> u64 {
    tensor.shape.iter().product::<usize>() as u64
}

pub(super) fn safetensors_dtype(dtype: FloatDtype) -> Dtype {
    match dtype {
        FloatDtype::F32 => Dtype::F32,
        FloatDtype::Bf16 => Dtype::BF16,
        FloatDtype::F16 => Dtype::F16,
    }
}
