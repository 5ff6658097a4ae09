//! Exports a model to one GGUF file, tensor by tensor, with an adapter merged in if there is one.
//!
//! Memory: one tensor in f32 and its encoded form. Every quantized tensor is decoded again to report the error of the
//! file.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use tune_kernels::ggml::BlockType;

use super::super::Error;
use super::super::base::OpenedBase;
use super::super::delta::{square_of, square_of_difference};
use super::super::folder::{Text, configured_ends, end_tokens};
use super::super::shards::Written;
use super::super::weights::{Merged, dense};
use super::container::{Keys, Layout, TensorHeader, Value};
use super::mixture::{self, Choice, FileType};
use super::modelfile::{self, Modelfile};
use super::names::{self, Tensor};
use super::{family, read_back, vocabulary};
use crate::assets::WeightFiles;
use crate::files::{self, Existing};
use crate::model::DecoderSpec;
use crate::model::tensors::{self, Checked};

/// Version of the block formats (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;
/// `general.file_type` where experts are in MXFP4.
const MXFP4_EXPERTS: u32 = 38;
/// Values decoded at a time to measure an error.
const PIECE: usize = 1 << 20;

/// The inputs of the file.
pub struct Model<'a> {
    /// The model, or the base of the adapter.
    pub base: &'a OpenedBase,
    /// The adapter on it.
    pub merged: Option<&'a Merged<'a>>,
    /// Tokenizer and template.
    pub text: &'a Text,
    /// The type of most tensors.
    pub file_type: FileType,
    /// Provenance keys.
    pub provenance: Keys,
}

/// A tensor stored in another type than the rules ask for, because its rows do not fill blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The tensor's name in the file.
    pub tensor: String,
    /// Length of its rows.
    pub columns: usize,
    /// The type that the rules ask for.
    pub wanted: BlockType,
    /// The type it is stored in.
    pub kind: BlockType,
}

/// The result of an export.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Name of the file in the folder.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Number of tensors of each type.
    pub kinds: BTreeMap<BlockType, usize>,
    /// Tensors in another type than the rules ask for.
    pub fallbacks: Vec<Fallback>,
    /// Relative error: norm of the encoding error over the norm of all weights.
    pub error: f64,
    /// The tensor with the largest relative error, and that error.
    pub worst: Option<(String, f64)>,
    /// Notes about differences in llama.cpp.
    pub notes: Vec<String>,
}

/// A tensor of the file and the source of its values.
enum Source {
    Weight(Tensor),
    Computed(String, Vec<f32>),
}

/// Sums of squares over all tensors.
#[derive(Default)]
struct Measured {
    weights: f64,
    errors: f64,
    worst: Option<(String, f64)>,
}

impl Model<'_> {
    /// Writes a folder with the file and its Modelfile; it is complete or absent.
    ///
    /// # Errors
    /// llama.cpp would compute something else, a value is outside its type's range, a file cannot be read or written,
    /// or `stop` returned true.
    pub fn write(
        &self,
        out: &Path,
        existing: Existing,
        progress: &mut dyn FnMut(Written),
        stop: &dyn Fn() -> bool,
    ) -> Result<Outcome, Error> {
        let spec = &self.base.spec;
        let mut notes = Vec::new();
        let ends = self.ends();
        let mut fallbacks = Vec::new();
        let (sources, headers) = self.plan(&mut fallbacks)?;
        let keys = self.keys(&ends, &headers, &mut notes)?;
        let layout = Layout::new(&keys, headers);
        let mut kinds = BTreeMap::new();
        for tensor in layout.tensors() {
            *kinds.entry(tensor.kind).or_insert(0) += 1;
        }
        let checked = tensors::check(spec, self.base.folder.weights(), None)?;
        let file = self.file_name();
        let stops = self.stops(&ends);
        let modelfile =
            Modelfile { file: &file, base: None, template: self.text.template.as_ref(), stops: &stops };
        let mut measured = Measured::default();
        files::write_folder_atomically(out, existing, |inside| -> Result<(), Error> {
            // The writer returns only I/O errors: others are stored here.
            let mut fault = None;
            let total = sources.len();
            let written = files::write_atomically(&inside.join(&file), |out: &mut dyn Write| {
                layout.write(out, |index| {
                    let kind = layout.tensors()[index].kind;
                    let coded = match stop() {
                        true => Err(Error::Stopped),
                        false => self.coded(&sources[index], kind, &checked, &mut measured),
                    };
                    let coded = coded.map_err(|error| {
                        fault = Some(error);
                        io::Error::other("the tensor cannot be written")
                    })?;
                    progress(Written { done: index + 1, total });
                    Ok(coded)
                })
            });
            match fault {
                Some(error) => return Err(error),
                None => written?,
            }
            Ok(files::write_bytes(&inside.join(modelfile::FILE), modelfile.text().as_bytes())?)
        })?;
        let error = match measured.weights > 0.0 {
            true => (measured.errors / measured.weights).sqrt(),
            false => 0.0,
        };
        let bytes = layout.bytes();
        Ok(Outcome { file, bytes, kinds, fallbacks, error, worst: measured.worst, notes })
    }

    fn file_name(&self) -> String {
        format!("model-{}.gguf", self.file_type.name())
    }

    /// The weights that a program finds in the file that [`Self::write`] wrote into `folder`, under the names that they have
    /// in the checkpoint.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn read_back(&self, folder: &Path) -> Result<WeightFiles, Error> {
        let (sources, headers) = self.plan(&mut Vec::new())?;
        let layout = Layout::new(&self.keys(&self.ends(), &headers, &mut Vec::new())?, headers);
        let tensors = sources.into_iter().zip(layout.tensors()).zip(layout.offsets());
        let written = tensors.filter_map(|((source, header), offset)| match source {
            Source::Weight(tensor) => Some((tensor, header.kind, offset)),
            Source::Computed(..) => None,
        });
        Ok(read_back::weights(folder, &self.file_name(), written.collect()))
    }

    /// Every key of the file.
    fn keys(&self, ends: &[u32], tensors: &[TensorHeader], notes: &mut Vec<String>) -> Result<Keys, Error> {
        let spec = &self.base.spec;
        let (hyperparameters, limits) = family::hyperparameters(spec)?;
        notes.extend(limits);
        let mut keys: Keys = vec![
            ("general.architecture".into(), family::declared(spec)?.architecture.into()),
            ("general.type".into(), "model".into()),
            ("general.size_label".into(), size_label(spec).into()),
        ];
        keys.extend(self.provenance.iter().cloned());
        let has_mxfp4 = tensors.iter().any(|tensor| tensor.kind == BlockType::Mxfp4);
        let file_type = if has_mxfp4 { MXFP4_EXPERTS } else { self.file_type.id() };
        keys.push(("general.file_type".into(), Value::U32(file_type)));
        keys.push(("general.quantization_version".into(), Value::U32(QUANTIZATION_VERSION)));
        keys.extend(hyperparameters);
        let file =
            self.text.files.iter().find(|file| file.file_name().is_some_and(|name| name == "tokenizer.json"));
        let (Some(file), Some(tokenizer)) = (file, &self.text.tokenizer) else {
            return Err(Error::NotInGguf {
                subject: format!("a model without tokenizer.json ({})", self.base.folder.root().display()),
                reason: "a GGUF file contains the tokenizer; write tokenizer.json into the folder with transformers: \
                         `AutoTokenizer.from_pretrained(…).save_pretrained(…)`"
                    .into(),
            });
        };
        let vocabulary =
            vocabulary::read(file, spec.vocab_size, family::declared(spec)?.merges_beside_bytes)?;
        notes.extend(vocabulary.notes);
        keys.extend(vocabulary.keys);
        let template = self.text.template.as_ref().map(crate::data::template::ChatTemplate::source);
        let config = self.base.folder.config();
        keys.extend(vocabulary::special(tokenizer, template, ends, config, spec.vocab_size)?);
        Ok(keys)
    }

    /// The tokens that end an answer: those of tokenizer and template, then those of the configuration.
    fn ends(&self) -> Vec<u32> {
        let Some(tokenizer) = &self.text.tokenizer else { return Vec::new() };
        let mut ends = end_tokens(tokenizer, self.text.template.as_ref());
        ends.extend(configured_ends(&self.base.folder));
        let mut seen = std::collections::BTreeSet::new();
        ends.retain(|end| seen.insert(*end));
        ends
    }

    fn stops(&self, ends: &[u32]) -> Vec<String> {
        ends.iter().filter_map(|end| self.text.tokenizer.as_ref()?.token(*end)).collect()
    }

    /// The tensors of the file, and the type of each.
    fn plan(&self, fallbacks: &mut Vec<Fallback>) -> Result<(Vec<Source>, Vec<TensorHeader>), Error> {
        let spec = self.merged.map_or(&self.base.spec, |merged| merged.spec);
        let (mut sources, mut headers) = (Vec::new(), Vec::new());
        for (name, values) in names::computed(spec) {
            headers.push(TensorHeader {
                name: name.clone(),
                shape: vec![values.len()],
                kind: BlockType::F32,
            });
            sources.push(Source::Computed(name, values));
        }
        for tensor in names::tensors(spec)? {
            let columns = tensor.row_length();
            let is_adapted = |source| self.merged.is_some_and(|merged| merged.is_adapted(source));
            let choice = match tensor.mxfp4 && !tensor.sources().any(is_adapted) {
                // As it was released: nothing is lost, and no type takes less.
                true => Choice { kind: BlockType::Mxfp4, wanted: BlockType::Mxfp4 },
                false => mixture::choose(self.file_type, tensor.role, columns, family::mixed(spec)),
            };
            if choice.kind != choice.wanted {
                let (tensor, wanted, kind) = (tensor.name.clone(), choice.wanted, choice.kind);
                fallbacks.push(Fallback { tensor, columns, wanted, kind });
            }
            let (name, shape) = (tensor.name.clone(), tensor.shape());
            headers.push(TensorHeader { name, shape, kind: choice.kind });
            sources.push(Source::Weight(tensor));
        }
        Ok((sources, headers))
    }

    /// The bytes of one tensor.
    fn coded(
        &self,
        source: &Source,
        kind: BlockType,
        checked: &Checked,
        measured: &mut Measured,
    ) -> Result<Vec<u8>, Error> {
        let tensor = match source {
            Source::Computed(name, values) => return encode(name, values, kind),
            Source::Weight(tensor) => tensor,
        };
        let mut coded = Vec::new();
        for source in tensor.sources() {
            let values = match self.merged {
                Some(merged) => merged.sum(source, checked)?.values,
                None => dense(self.base, checked, &source.name)?,
            };
            let values = tensor.arranged(values);
            let part = encode(&source.name, &values, kind)?;
            measured.add(&tensor.name, &values, &part, kind);
            coded.extend(part);
        }
        Ok(coded)
    }
}

impl Measured {
    fn add(&mut self, name: &str, values: &[f32], coded: &[u8], kind: BlockType) {
        let pieces = values.chunks(PIECE).zip(coded.chunks(kind.bytes(PIECE)));
        let error: f64 =
            pieces.map(|(values, coded)| square_of_difference(values, &kind.decode(coded))).sum();
        let weight = square_of(values);
        self.weights += weight;
        self.errors += error;
        let share = if weight > 0.0 { (error / weight).sqrt() } else { 0.0 };
        if share > self.worst.as_ref().map_or(0.0, |(_, worst)| *worst) {
            self.worst = Some((name.to_owned(), share));
        }
    }
}

/// Encodes a tensor; `name` is its name in the checkpoint, for messages.
pub(super) fn encode(name: &str, values: &[f32], kind: BlockType) -> Result<Vec<u8>, Error> {
    kind.encode(values).map_err(|fault| Error::OutOfRange {
        tensor: name.to_owned(),
        element: fault.element,
        value: fault.value,
        kind: kind.name(),
    })
}

/// The size as in model names: 135M, 8.0B, or that with one expert and the number of them, 8x7.2B.
fn size_label(spec: &DecoderSpec) -> String {
    let experts = spec.layers.iter().find_map(|layer| layer.mixture()).map_or(0, |first| first.experts.len());
    let projections = spec.layers.iter().flat_map(|layer| layer.projections());
    let routed = projections.filter(|projection| projection.role.is_routed());
    let routed: u64 = routed.map(|projection| projection.shape.iter().product::<usize>() as u64).sum();
    match experts as u64 {
        0 => rounded(spec.parameters()),
        experts => format!("{experts}x{}", rounded(spec.parameters() - routed + routed / experts)),
    }
}

/// A number of parameters with at least two digits.
fn rounded(parameters: u64) -> String {
    let (divisor, letter) = match parameters {
        1_000_000_000_000.. => (1e12, 'T'),
        1_000_000_000.. => (1e9, 'B'),
        1_000_000.. => (1e6, 'M'),
        _ => (1e3, 'K'),
    };
    let scaled = parameters as f64 / divisor;
    let digits = usize::from(scaled.round() < 10.0) + usize::from(scaled.round() < 1.0);
    format!("{scaled:.digits$}{letter}")
}

#[cfg(test)]
mod tests {
    use super::rounded;

    #[test]
    fn sizes_as_models_are_named() {
        for (parameters, label) in
            [(134_515_008, "135M"), (1_234_567_890, "1.2B"), (8_030_261_248, "8.0B"), (45_000, "45K")]
        {
            assert_eq!(rounded(parameters), label);
        }
    }
}
