//! A base written once in 4 bits, as bitsandbytes and transformers save it: the next run need not read and quantize the
//! original weights again.
//!
//! Every projection of the decoder is quantized, by the rule that quantizes while loading, so that what is trained on
//! the folder and on the original is the same. Embeddings, output head, norms and biases stay byte for byte. A file
//! holds scales before codes and its header before both, so each weight is quantized once for its scales and once for
//! its codes; under double quantization also once beforehand, for the mean of its scales, whose digits the header's
//! sizes depend on. Memory is one tensor in f32 and what it becomes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tune_kernels::nf4::Quantized;

use super::Error;
use super::base::{ORIGINAL_HASH_PREFIX, ORIGINAL_QUANTIZATION_KEY, OpenedBase};
use super::delta::{square_of, square_of_difference};
use super::shards::{Entry, Shards, Written};
use crate::assets::Dtype;
use crate::files::safetensors::TensorHeader;
use crate::files::{self, Existing};
use crate::model::FloatDtype;
use crate::model::tensors::{self, Expected};
use crate::quant::bitsandbytes::write::{self, Plan};
use crate::quant::{self, spec::Spec};

/// Beginnings of the names of files that a model may only be passed on with.
const LICENCES: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];
/// Most bytes of a README that are looked through for what it says of the licence.
const CARD_LIMIT: usize = 1 << 20;

/// Choices.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Blocks and double quantization.
    pub spec: Spec,
    /// Bytes of tensors a file may hold.
    pub shard_bytes: u64,
    /// What to do when the destination is taken.
    pub existing: Existing,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Files of the original hashed and scales measured: steps done, of how many.
    Measuring(usize, usize),
    /// Tensors written, of how many.
    Writing(usize, usize),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Weights that are in 4 bits now.
    pub quantized: usize,
    /// Tensors that stay as they were.
    pub kept: usize,
    /// Bytes of the weight files before.
    pub bytes_before: u64,
    /// Bytes of the weight files now.
    pub bytes: u64,
    /// Norm of what quantizing changed, as a share of the norm of the quantized weights.
    pub error: f64,
    /// The weight whose share is largest, and that share.
    pub worst: Option<(String, f64)>,
}

/// Writes `base` in 4 bits to the folder `out`: whole or absent.
///
/// # Errors
/// The base is in 4 bits already, can no longer be read, holds a number that is not finite; the destination is taken or
/// cannot be written; or `stop` says so.
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
                "{} is stored in 4 bits already; a recipe takes it as its base as it is (`[model] base`)",
                base.name()
            ),
        });
    }
    let mut finished = None;
    files::write_folder_atomically(out, options.existing, |folder| -> Result<(), Error> {
        let work = Work::plan(base, options.spec, progress, stop)?;
        let outcome = work.write(folder, options.shard_bytes, progress, stop)?;
        write_beside(folder, base, options.spec)?;
        finished = Some(outcome);
        Ok(())
    })?;
    finished.ok_or(Error::Stopped)
}

/// Everything that the files follow from.
struct Work<'a> {
    base: &'a OpenedBase,
    spec: Spec,
    /// The weights that are quantized, by the name of each of their tensors.
    plans: BTreeMap<String, usize>,
    planned: Vec<Plan>,
    entries: Vec<Entry>,
    kept: usize,
    metadata: BTreeMap<String, String>,
}

impl<'a> Work<'a> {
    /// Lays out every tensor; under double quantization that takes the mean of each weight's scales.
    fn plan(
        base: &'a OpenedBase,
        spec: Spec,
        progress: &mut dyn FnMut(Progress),
        stop: &dyn Fn() -> bool,
    ) -> Result<Self, Error> {
        let expected = tensors::expected(&base.spec);
        let total = 1 + expected.len();
        progress(Progress::Measuring(0, total));
        let metadata = metadata(base, spec)?;
        let mut work = Self {
            base,
            spec,
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
        Ok(work)
    }

    fn add(&mut self, tensor: &Expected) -> Result<(), Error> {
        let dtype = self.base.folder.weights().info(&tensor.name).map_or(Dtype::F32, |info| info.dtype);
        let parameters = tensor.shape.iter().product::<usize>() as u64;
        if !tensor.projection {
            let header = TensorHeader { name: tensor.name.clone(), dtype, shape: tensor.shape.clone() };
            self.entries.push(Entry { tensors: vec![header], parameters });
            self.kept += 1;
            return Ok(());
        }
        let shape = [tensor.shape[0], tensor.shape[1]];
        let Spec::Nf4 { double_quant, .. } = self.spec;
        let offset = match double_quant {
            true => write::offset(&self.quantized(&tensor.name, shape)?.0),
            false => None,
        };
        let plan =
            Plan { weight: tensor.name.clone(), shape, spec: self.spec, dtype: torch_name(dtype), offset };
        let tensors = plan.tensors();
        self.plans.extend(tensors.iter().map(|part| (part.name.clone(), self.planned.len())));
        self.entries.push(Entry { tensors, parameters });
        self.planned.push(plan);
        Ok(())
    }

    /// A weight in 4 bits, and what it was in f32.
    fn quantized(&self, weight: &str, shape: [usize; 2]) -> Result<(Quantized, Vec<f32>), Error> {
        let values = self.base.folder.weights().read_floats::<f32>(weight)?;
        Ok((quant::nf4::quantize(&values, shape, self.spec), values))
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
        // Tensors of one weight follow each other among the scales, and again among the codes.
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
        Ok(Outcome {
            quantized: self.planned.len(),
            kept: self.kept,
            bytes_before: weights.total_bytes(),
            bytes: crate::assets::WeightFiles::open(folder)?.total_bytes(),
            error: (errors.changed / errors.weights.max(f64::MIN_POSITIVE)).sqrt(),
            worst: errors.worst,
        })
    }
}

/// Sums of squares over the quantized weights.
#[derive(Default)]
struct Errors {
    weights: f64,
    changed: f64,
    worst: Option<(String, f64)>,
}

impl Errors {
    fn add(&mut self, name: &str, values: &[f32], quantized: &Quantized) {
        let (weights, changed) = (square_of(values), square_of_difference(values, &quantized.dequantize()));
        self.weights += weights;
        self.changed += changed;
        let share = (changed / weights.max(f64::MIN_POSITIVE)).sqrt();
        if self.worst.as_ref().is_none_or(|(_, worst)| share > *worst) {
            self.worst = Some((name.to_owned(), share));
        }
    }
}

/// What the files say of where they come from.
fn metadata(base: &OpenedBase, spec: Spec) -> Result<BTreeMap<String, String>, Error> {
    let mut metadata = BTreeMap::from([
        ("tune.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        (ORIGINAL_QUANTIZATION_KEY.to_owned(), spec.to_string()),
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

/// Everything in the folder that is not a weight.
fn write_beside(folder: &Path, base: &OpenedBase, spec: Spec) -> Result<(), Error> {
    let dtype = tensors::checkpoint_dtype(&base.spec, base.folder.weights());
    let config = config(base.folder.config(), spec, dtype);
    files::write_bytes(&folder.join("config.json"), format!("{config:#}\n").as_bytes())?;
    let mut copied = base.folder.tokenizer_files()?;
    if base.folder.generation_config().is_some() {
        copied.push(base.folder.root().join("generation_config.json"));
    }
    copied.extend(licences(base.folder.root())?);
    for file in copied {
        if let Some(name) = file.file_name() {
            files::copy_file(&file, &folder.join(name))?;
        }
    }
    files::write_bytes(&folder.join("README.md"), card(base, spec)?.as_bytes())?;
    Ok(())
}

/// config.json of the base, with what transformers writes of such a quantization.
fn config(base: &Value, spec: Spec, dtype: FloatDtype) -> Value {
    let Spec::Nf4 { double_quant, .. } = spec;
    let mut config = base.clone();
    if let Value::Object(entries) = &mut config {
        let compute_dtype = match dtype {
            FloatDtype::F32 => "float32",
            FloatDtype::Bf16 => "bfloat16",
            FloatDtype::F16 => "float16",
        };
        let quantization = json!({
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "bnb_4bit_compute_dtype": compute_dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": double_quant,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": null,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "quant_method": "bitsandbytes",
        });
        entries.insert("quantization_config".into(), quantization);
    }
    config
}

/// Licence files of a model, in alphabetical order.
fn licences(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |source| Error::from(files::Error::io(files::Action::Read, root)(source));
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if LICENCES.iter().any(|start| name.starts_with(start)) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A model card that says what this is, and of the licence what the base's own says.
fn card(base: &OpenedBase, spec: Spec) -> Result<String, Error> {
    let Spec::Nf4 { block_size, double_quant } = spec;
    let name = base.base.hub.as_ref().map(|hub| &hub.id);
    let mut lines = name.map_or_else(String::new, |name| {
        format!("base_model: {}\nbase_model_relation: quantized\n", json!(name))
    });
    let path = base.folder.root().join("README.md");
    let readme = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read.map_err(files::Error::io(files::Action::Read, &path))?,
    };
    for line in licence_lines(&String::from_utf8_lossy(&readme[..readme.len().min(CARD_LIMIT)])) {
        lines.push_str(&format!("{line}\n"));
    }
    Ok(format!(
        "---\n{lines}library_name: transformers\npipeline_tag: text-generation\ntags:\n- bitsandbytes\n- 4-bit\n- tune\n---\n\n\
         # {} in 4 bits\n\n\
         NF4 in blocks of {block_size}{}, in the layout of bitsandbytes. Embeddings, output head and norms are as they \
         were.\nHashes of the original files stand in the metadata of the safetensors files.\n",
        name.map_or("A model", String::as_str),
        if double_quant { ", scales in 8 bits (double quantization)" } else { "" },
    ))
}

/// The lines on the licence in the front matter of a model card.
fn licence_lines(card: &str) -> Vec<&str> {
    let mut lines = card.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Vec::new();
    }
    lines
        .take_while(|line| line.trim_end() != "---")
        .filter(|line| ["license:", "license_name:", "license_link:"].iter().any(|key| line.starts_with(key)))
        .collect()
}

fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    }
}

#[cfg(test)]
mod tests {
    use super::licence_lines;

    #[test]
    fn the_licence_is_taken_from_the_front_matter_alone() {
        let card = "---\nlanguage: en\nlicense: other\nlicense_name: its-own\n---\nlicense: not this\n";
        assert_eq!(licence_lines(card), ["license: other", "license_name: its-own"]);
        assert_eq!(licence_lines("# No front matter\nlicense: mit\n"), Vec::<&str>::new());
    }
}
