//! The tensors a decoder needs, checked against those a checkpoint has before anything is allocated.
//!
//! Only headers (and the short states of quantized weights) are read here; `load` reads the numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::Error;
use super::decoder_spec::{DecoderSpec, FloatDtype};
use crate::adapter::projection::Projection;
use crate::assets::{Dtype, WeightFiles};
use crate::quant::bitsandbytes::Stored;
use crate::quant::spec::Spec;

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
}

/// Every tensor of a decoder, in the order a forward pass meets them; a tied head is not listed.
pub fn expected(spec: &DecoderSpec) -> Vec<Expected> {
    let names = &spec.names;
    let dense = |name: String, shape: Vec<usize>| Expected { name, shape, projection: false };
    let mut tensors = vec![dense(names.embedding.into(), vec![spec.vocab_size, spec.hidden_size])];
    for layer in 0..spec.layers {
        let norm = |name: &str| dense(format!("{}.{layer}.{name}", names.layers), vec![spec.hidden_size]);
        tensors.push(norm(names.attention_norm));
        for projection in Projection::ALL {
            if projection == Projection::Gate {
                tensors.push(norm(names.feed_forward_norm));
            }
            let module = names.projection(layer, projection);
            let [out, input] = spec.projection_shape(projection);
            let name = format!("{module}.weight");
            tensors.push(Expected { name, shape: vec![out, input], projection: true });
            if spec.has_bias(projection) {
                tensors.push(dense(format!("{module}.bias"), vec![out]));
            }
        }
        if spec.query_key_norm {
            for name in [QUERY_NORM, KEY_NORM] {
                tensors.push(dense(head_norm(spec, layer, name), vec![spec.head_dim]));
            }
        }
    }
    tensors.push(dense(names.final_norm.into(), vec![spec.hidden_size]));
    if !spec.tied {
        tensors.push(dense(names.head.into(), vec![spec.vocab_size, spec.hidden_size]));
    }
    tensors
}

/// The norm over a head's queries.
pub const QUERY_NORM: &str = "q_norm.weight";
/// The norm over a head's keys.
pub const KEY_NORM: &str = "k_norm.weight";

/// Name of a norm over the heads of one layer.
pub(super) fn head_norm(spec: &DecoderSpec, layer: usize, name: &str) -> String {
    format!("{}.{layer}.{}.{name}", spec.names.layers, spec.names.attention)
}

/// Proof that a checkpoint holds a decoder: which of its projections are stored in 4 bits.
#[derive(Debug)]
pub struct Checked {
    /// Weight name → how it is stored, for the weights that are quantized.
    pub quantized: BTreeMap<String, Stored>,
}

impl Checked {
    /// The blocks of the projections, where all of them are stored in 4 bits and alike.
    pub fn blocks(&self, spec: &DecoderSpec) -> Option<Spec> {
        let mut stored = self.quantized.values().map(Stored::blocks_of);
        let first = stored.next()?;
        let all = self.quantized.len() == spec.layers * Projection::ALL.len();
        (all && stored.all(|other| other == first)).then_some(first)
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
    for Expected { name, shape, projection } in expected(spec) {
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
            Some(info) if info.shape != shape => {
                problems.push(format!("tensor `{name}` has shape {:?}, expected {shape:?}", info.shape));
            }
            Some(info) if float_dtype(info.dtype).is_none() => {
                problems.push(format!("tensor `{name}` is {:?}; F32, F16 and BF16 can be read", info.dtype));
            }
            Some(_) => {}
        }
        consumed.insert(name);
    }
    for name in weights.names().filter(|name| !consumed.contains(*name)) {
        if !ignorable(spec, weights, name)? {
            problems.push(format!("tensor `{name}` belongs to nothing in this model"));
        }
    }
    if problems.is_empty() {
        return Ok(Checked { quantized });
    }
    if problems.len() > SHOWN {
        let more = problems.len() - SHOWN;
        problems.truncate(SHOWN);
        problems.push(format!("and {more} more"));
    }
    Err(Error::Tensors { folder: weights.folder().display().to_string(), problems })
}

/// Tensors that some tools write and that carry nothing: rotary frequencies, a copy of tied embeddings.
fn ignorable(spec: &DecoderSpec, weights: &WeightFiles, name: &str) -> Result<bool, Error> {
    if name.ends_with(".rotary_emb.inv_freq") {
        return Ok(true);
    }
    if spec.tied && name == spec.names.head {
        return match weights.info(spec.names.embedding).is_some() {
            true if weights.same_tensor(name, spec.names.embedding)? => Ok(true),
            _ => Err(Error::Tensors {
                folder: weights.folder().display().to_string(),
                problems: vec![format!(
                    "config.json ties the output head to the embeddings, but `{name}` differs from `{}`; set \
                     `tie_word_embeddings` to false if both are meant",
                    spec.names.embedding
                )],
            }),
        };
    }
    Ok(false)
}

/// The dtype the weights have: what config.json says, else that of the embedding table.
pub fn checkpoint_dtype(spec: &DecoderSpec, weights: &WeightFiles) -> FloatDtype {
    let embedding = || weights.info(spec.names.embedding).and_then(|info| float_dtype(info.dtype));
    spec.dtype.or_else(embedding).unwrap_or(FloatDtype::F32)
}

fn float_dtype(dtype: Dtype) -> Option<FloatDtype> {
    match dtype {
        Dtype::F32 => Some(FloatDtype::F32),
        Dtype::BF16 => Some(FloatDtype::Bf16),
        Dtype::F16 => Some(FloatDtype::F16),
        _ => None,
    }
}
