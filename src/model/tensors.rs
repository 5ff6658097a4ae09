//! The tensors a decoder needs, checked against those a checkpoint has before anything is allocated.
//!
//! Only headers (and the short states of quantized weights) are read here; `load` reads the numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::Error;
use super::decoder_spec::DecoderSpec;
use super::dtype::FloatDtype;
use super::parts::{LayerSpec, LayerTensor, NormSpec};
use crate::assets::{Dtype, WeightFiles};
use crate::quant::spec::Spec;
use crate::quant::stored::Stored;

/// Where models with towers keep what is not their text decoder.
const BESIDE: [&str; 14] = [
    "model.vision_tower.",
    "vision_tower.",
    "model.visual.",
    "visual.",
    "model.multi_modal_projector.",
    "multi_modal_projector.",
    "model.audio_tower.",
    "audio_tower.",
    "model.embed_vision.",
    "model.embed_audio.",
    "model.vision_embedder.",
    "model.vision_adapter.",
    "model.vision_projection.",
    "mtp.",
];
/// Tensors beside a weight in 8-bit floats that only inference in 8 bits reads.
const OF_ACTIVATIONS: [&str; 4] = [".activation_scale", ".input_scale", ".k_scale", ".v_scale"];
/// Mismatches spelled out in one message; the rest are counted.
const SHOWN: usize = 10;

/// A tensor that a decoder needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether it is the weight of a projection, which may be quantized.
    pub projection: bool,
    /// Whether a recipe leaves it in the compute dtype, whatever else is quantized.
    pub dense: bool,
}

/// Every tensor of a decoder, in the order a forward pass meets them; a tied head is not listed.
pub fn expected(spec: &DecoderSpec) -> Vec<Expected> {
    let mut tensors = vec![table(spec, spec.paths.embedding)];
    if let Some(per_layer) = &spec.per_layer {
        tensors.push(weight(per_layer.table, vec![per_layer.rows, per_layer.numbers()]));
        tensors.push(weight(per_layer.projection, vec![per_layer.numbers(), spec.hidden_size]));
        tensors.extend(of_norm(&per_layer.norm, per_layer.norm.path));
    }
    for (layer, layer_spec) in spec.layers.iter().enumerate() {
        tensors.extend(layer_spec.tensors().iter().flat_map(|tensor| of_layer(spec, layer, tensor)));
    }
    tensors.extend(of_norm(&spec.final_norm, spec.final_norm.path));
    if !spec.tied {
        tensors.push(table(spec, spec.paths.head));
    }
    tensors.extend(head_bias(spec));
    tensors
}

/// The bias of the output head, if it has one.
pub(crate) fn head_bias(spec: &DecoderSpec) -> Option<Expected> {
    let name = format!("{}.bias", spec.paths.head);
    spec.head_bias.then(|| Expected { name, shape: vec![spec.vocab_size], projection: false, dense: true })
}

/// The embedding table or the output head.
pub(crate) fn table(spec: &DecoderSpec, path: &str) -> Expected {
    weight(path, vec![spec.vocab_size, spec.hidden_size])
}

/// The dense weight of a module.
pub(crate) fn weight(path: &str, shape: Vec<usize>) -> Expected {
    Expected { name: format!("{path}.weight"), shape, projection: false, dense: true }
}

/// The tensors of a norm: its weight, then its bias if it has one.
pub(crate) fn of_norm(norm: &NormSpec, path: &str) -> Vec<Expected> {
    let own = weight(path, vec![norm.width]);
    let bias = Expected { name: format!("{path}.bias"), ..own.clone() };
    [Some(own), norm.kind.has_bias().then_some(bias)].into_iter().flatten().collect()
}

/// The tensors of a part of a layer: its weight, then its bias if it has one.
pub(crate) fn of_layer(spec: &DecoderSpec, layer: usize, tensor: &LayerTensor) -> Vec<Expected> {
    match tensor {
        LayerTensor::Norm(norm) => of_norm(norm, &spec.path(layer, norm.path)),
        LayerTensor::Projection(projection) => {
            let path = spec.path(layer, &projection.path);
            let [out, _] = projection.shape;
            let own = Expected {
                projection: true,
                dense: projection.dense,
                ..weight(&path, projection.shape.to_vec())
            };
            let bias =
                Expected { name: format!("{path}.bias"), shape: vec![out], projection: false, dense: true };
            [Some(own), projection.bias.then_some(bias)].into_iter().flatten().collect()
        }
        LayerTensor::Constant(constant) => {
            let name = spec.path(layer, constant.name);
            vec![Expected { name, shape: constant.shape.clone(), projection: false, dense: true }]
        }
    }
}

/// Proof that a checkpoint holds a decoder: which of its projections are stored in 4 bits.
#[derive(Debug)]
pub struct Checked {
    /// Weight name → how it is stored, for the weights that are quantized.
    pub quantized: BTreeMap<String, Stored>,
    /// Tensors of the parts that are not the text decoder: towers, projectors, heads that predict further tokens.
    pub skipped: Vec<String>,
}

impl Checked {
    /// The decoder as the checkpoint stores it: beside projections that bitsandbytes quantized, the others are dense.
    #[must_use]
    pub fn as_stored(&self, spec: DecoderSpec) -> DecoderSpec {
        match self.is_whole() {
            true => spec.dense_where(|path| !self.quantized.contains_key(&format!("{path}.weight"))),
            false => spec,
        }
    }

    /// Whether what is dense here is meant to be.
    fn is_whole(&self) -> bool {
        self.quantized.values().any(|stored| matches!(stored, Stored::Bitsandbytes(_)))
    }

    /// The blocks of the projections, where all of them are stored in 4 bits and alike.
    pub fn blocks(&self, spec: &DecoderSpec) -> Option<Spec> {
        let mut stored = self.quantized.values().map(Stored::blocks_of);
        let first = stored.next()??;
        let all =
            expected(spec).iter().all(|tensor| tensor.dense || self.quantized.contains_key(&tensor.name));
        (all && stored.all(|other| other == Some(first))).then_some(first)
    }

    /// A recipe's quantization, as far as it concerns the projections that are dense here: none where bitsandbytes has
    /// quantized the others, for then that is meant.
    pub fn quantization_of_dense(&self, spec: Option<Spec>) -> Option<Spec> {
        spec.filter(|_| !self.is_whole())
    }
}

/// Checks every tensor's presence, shape and dtype, and that nothing is left over.
///
/// A checkpoint that is quantized is taken as it is, its dense projections included; a recipe's
/// `[quantization.nf4]` then has to say what the checkpoint has.
///
/// # Errors
/// Any mismatch; each names its tensor.
pub fn check(
    spec: &DecoderSpec,
    weights: &WeightFiles,
    quantization: Option<Spec>,
) -> Result<Checked, Error> {
    let mut problems = Vec::new();
    let mut quantized = BTreeMap::new();
    let mut consumed: BTreeSet<String> = BTreeSet::new();
    let in_four_bits: BTreeSet<&str> = weights.names().filter_map(weight_of_state).collect();
    for Expected { name, shape, projection, .. } in expected(spec) {
        if projection && let Some(stored) = Stored::find(weights, &name, [shape[0], shape[1]])? {
            if let Some(spec) = quantization {
                stored.agrees(spec)?;
            }
            consumed.extend(stored.tensors());
            quantized.insert(name, stored);
            continue;
        }
        match weights.info(&name) {
            None => problems.push(format!("tensor `{name}` {shape:?} is missing")),
            Some(info) if info.shape != shape && !in_four_bits.contains(&*name) => {
                problems.push(format!("tensor `{name}` has shape {:?}, expected {shape:?}", info.shape));
            }
            Some(_) if in_four_bits.contains(&*name) => {
                problems.push(format!(
                    "`{name}` is stored in 4 bits, which only the projections of layers can be; quantize the original \
                     again with `tune quantize`, or in transformers with `llm_int8_skip_modules`"
                ));
                consumed.extend(weights.names().filter(|other| is_state_of(other, &name)).map(str::to_owned));
            }
            Some(info) if projection && info.dtype == Dtype::F8_E4M3 => match weights.scales_of(&name) {
                Some(scales) => _ = consumed.insert(scales),
                None => problems.push(format!(
                    "tensor `{name}` is F8_E4M3 and has no scales that fit it (`weight_scale_inv` or `weight_scale`, for the \
                     whole weight, for each row or for blocks of 128 × 128)"
                )),
            },
            Some(info) if float_dtype(info.dtype).is_none() => {
                problems.push(format!("tensor `{name}` is {:?}; F32, F16 and BF16 can be read", info.dtype));
            }
            Some(_) => {}
        }
        consumed.insert(name);
    }
    let mut skipped = Vec::new();
    for name in weights.names().filter(|name| !consumed.contains(*name)) {
        if spec.wrapper.is_some() && BESIDE.iter().any(|prefix| name.starts_with(prefix)) {
            skipped.push(name.to_owned());
        } else if !ignorable(spec, weights, name)? {
            problems.push(format!("tensor `{name}` belongs to nothing in this model"));
        }
    }
    if problems.is_empty() {
        return Ok(Checked { quantized, skipped });
    }
    if let Some(problem) = renamed(spec, weights) {
        problems = vec![problem];
    }
    if problems.len() > SHOWN {
        let more = problems.len() - SHOWN;
        problems.truncate(SHOWN);
        problems.push(format!("and {more} more"));
    }
    Err(Error::Tensors { folder: weights.folder().display().to_string(), problems })
}

/// What all names have in front of those that are expected, or lack, where that is all that is wrong with them.
fn renamed(spec: &DecoderSpec, weights: &WeightFiles) -> Option<String> {
    let expected: Vec<String> = expected(spec).into_iter().map(|tensor| tensor.name).collect();
    let has = |name: &str| weights.info(name).is_some();
    let embedding = embedding_name(spec);
    let prefix =
        weights.names().find_map(|name| name.strip_suffix(&embedding).filter(|prefix| !prefix.is_empty()));
    if let Some(prefix) = prefix.filter(|prefix| expected.iter().all(|name| has(&format!("{prefix}{name}"))))
    {
        return Some(format!(
            "every tensor has `{prefix}` in front of its name, as a wrapper writes it; save the model that is inside the \
             wrapper, or rename the tensors in a copy"
        ));
    }
    let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
    let (head, inner): (Vec<_>, Vec<_>) = expected.into_iter().partition(|name| !name.starts_with("model."));
    (!has(&embedding) && !inner.is_empty() && inner.iter().all(|name| has(&bare(name)))).then(|| {
        let head = match head.iter().find(|name| !has(name)) {
            Some(name) => format!(", and `{name}` is missing"),
            None => String::new(),
        };
        format!(
            "the names of the tensors lack `model.`, as a model without its output head is saved{head}; load the folder with \
             transformers' AutoModelForCausalLM and save it again (`save_pretrained`)"
        )
    })
}

/// The weight that a tensor is part of, as bitsandbytes stores weights in 4 bits.
fn weight_of_state(name: &str) -> Option<&str> {
    name.strip_suffix(".absmax").or_else(|| name.split_once(".quant_state.").map(|(weight, _)| weight))
}

/// Whether a tensor is part of how bitsandbytes stores a weight in 4 bits.
fn is_state_of(other: &str, weight: &str) -> bool {
    let state = other.strip_prefix(weight).and_then(|rest| rest.strip_prefix('.'));
    state.is_some_and(|state| state == "absmax" || state.starts_with("quant_state."))
}

/// Endings of buffers that follow from config.json: rotary frequencies, and masks of the time before they were made.
const REDUNDANT: [&str; 5] =
    [".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias", ".attn.bias", ".attn.masked_bias"];

/// Tensors that some tools write and that are redundant: buffers, a copy of tied embeddings, the value head that TRL trains
/// beside a model.
fn ignorable(spec: &DecoderSpec, weights: &WeightFiles, name: &str) -> Result<bool, Error> {
    let of_activations = OF_ACTIVATIONS.iter().any(|ending| name.ends_with(ending));
    let is_buffer = REDUNDANT.iter().any(|ending| name.ends_with(ending));
    if is_buffer || name.starts_with("v_head.") || of_activations {
        return Ok(true);
    }
    // What layers that read another's keys and values would have had themselves.
    let reads = |layer: usize, layer_spec: &LayerSpec| {
        let unread = ["k_proj", "v_proj", "k_norm", "v_norm"].map(|part| format!("self_attn.{part}.weight"));
        layer_spec.reads().is_some() && unread.iter().any(|unread| name == spec.path(layer, unread))
    };
    if spec.layers.iter().enumerate().any(|(layer, layer_spec)| reads(layer, layer_spec)) {
        return Ok(true);
    }
    let embedding = embedding_name(spec);
    if spec.tied && name == format!("{}.weight", spec.paths.head) {
        return match weights.info(&embedding).is_some() {
            true if weights.same_tensor(name, &embedding)? => Ok(true),
            _ => Err(Error::Tensors {
                folder: weights.folder().display().to_string(),
                problems: vec![format!(
                    "config.json ties the output head to the embeddings, but `{name}` differs from `{embedding}`; \
                     set `tie_word_embeddings` to false if both are meant"
                )],
            }),
        };
    }
    Ok(false)
}

/// The dtype the weights have: what config.json says, else that of the embedding table.
pub fn checkpoint_dtype(spec: &DecoderSpec, weights: &WeightFiles) -> FloatDtype {
    let embedding = || weights.info(&embedding_name(spec)).and_then(|info| float_dtype(info.dtype));
    spec.dtype.or_else(embedding).unwrap_or(FloatDtype::F32)
}

fn embedding_name(spec: &DecoderSpec) -> String {
    format!("{}.weight", spec.paths.embedding)
}

fn float_dtype(dtype: Dtype) -> Option<FloatDtype> {
    match dtype {
        Dtype::F32 => Some(FloatDtype::F32),
        Dtype::BF16 => Some(FloatDtype::Bf16),
        Dtype::F16 => Some(FloatDtype::F16),
        _ => None,
    }
}
