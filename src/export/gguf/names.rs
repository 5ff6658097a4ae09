//! The tensors of a GGUF file: llama.cpp's name of each tensor of a decoder, and how its numbers are arranged there.

use super::super::Error;
use super::family::{attentions, not_carried};
use super::rows::Rows;
use super::{experts, mixers, positions};
use crate::adapter::projection;
use crate::model::DecoderSpec;
use crate::model::gguf_spec::Scales;
use crate::model::parts::{LayerTensor, NormSpec, ProjectionSpec};
use crate::model::tensors::{self, Expected};

/// The role of a tensor, as far as its type depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A norm, a bias, or another tensor that is always in f32.
    Vector,
    /// A matrix that is never quantized.
    Whole,
    /// An embedding table.
    Embedding,
    /// The output head.
    Head,
    /// The projection of a layer to values, or to queries, keys and values.
    Value {
        /// From 0.
        layer: usize,
    },
    /// The last projection of a layer.
    Down {
        /// From 0.
        layer: usize,
    },
    /// Any other projection.
    Matrix,
}

/// What becomes of each number of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// 1 is added: a norm that the family multiplies by 1 + w.
    PlusOne,
    /// x becomes −eˣ: a rate that the family stores as its logarithm.
    MinusExponential,
}

impl Change {
    /// The number in the file.
    pub fn of(self, value: f32) -> f32 {
        match self {
            Self::None => value,
            Self::PlusOne => value + 1.0,
            Self::MinusExponential => -f64::from(value).exp() as f32,
        }
    }

    /// The number in the checkpoint.
    pub fn back(self, value: f32) -> f32 {
        match self {
            Self::None => value,
            Self::PlusOne => value - 1.0,
            Self::MinusExponential => f64::from(-value).ln() as f32,
        }
    }
}

/// A tensor of the decoder and its place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the GGUF file.
    pub name: String,
    /// Its tensor in the checkpoint.
    pub source: Expected,
    /// Its role.
    pub role: Role,
    /// Which rows of the checkpoint's tensor it holds, in which order.
    pub rows: Rows,
    /// The order of the numbers in a row.
    pub columns: Rows,
    /// What becomes of each number.
    pub change: Change,
    /// Whether dimensions of 1 are left out.
    pub squeezed: bool,
    /// Whether the checkpoint stores it in MXFP4, which files have too.
    pub mxfp4: bool,
    /// Further tensors of the checkpoint that follow: those of the other experts.
    pub stack: Vec<Expected>,
}

impl Tensor {
    /// As it is in the checkpoint; `name` is without the ending.
    fn of(name: &str, role: Role, source: Expected) -> Self {
        let ending = if source.name.ends_with(".bias") { "bias" } else { "weight" };
        let role = if source.shape.len() > 1 { role } else { Role::Vector };
        Self {
            name: format!("{name}.{ending}"),
            source,
            role,
            rows: Rows::All,
            columns: Rows::All,
            change: Change::None,
            squeezed: false,
            mxfp4: false,
            stack: Vec::new(),
        }
    }

    /// Its tensors in the checkpoint.
    pub fn sources(&self) -> impl Iterator<Item = &Expected> {
        std::iter::once(&self.source).chain(&self.stack)
    }

    /// Its shape in the file, rows first.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.source.shape.clone();
        if self.squeezed {
            shape.retain(|size| *size > 1);
        }
        if let (Rows::Part(rows), Some(first)) = (&self.rows, shape.first_mut()) {
            *first = rows.len();
        }
        if !self.stack.is_empty() {
            shape.insert(0, 1 + self.stack.len());
        }
        shape
    }

    /// Its numbers, from those of a tensor of the checkpoint.
    pub fn arranged(&self, values: Vec<f32>) -> Vec<f32> {
        let columns = self.row_length();
        let mut values = self.rows.arranged(values, columns);
        if self.columns != Rows::All {
            let rows = values.chunks_exact(columns).map(|row| self.columns.arranged(row.to_vec(), 1));
            values = rows.flatten().collect();
        }
        if self.change != Change::None {
            values.iter_mut().for_each(|value| *value = self.change.of(*value));
        }
        values
    }

    /// Length of a row: 1 for a vector.
    pub fn row_length(&self) -> usize {
        self.source.shape.iter().skip(1).product()
    }

    /// Which row of a tensor of the checkpoint each of its rows is. Row numbers are exact in f32 up to 2^24.
    pub fn source_rows(&self) -> Vec<usize> {
        order(&self.rows, self.source.shape.first().copied().unwrap_or(1))
    }

    /// Which number of a row of the checkpoint each number of a row is.
    pub fn source_columns(&self) -> Vec<usize> {
        order(&self.columns, self.row_length())
    }
}

fn order(rows: &Rows, all: usize) -> Vec<usize> {
    let rows = rows.arranged((0..all).map(|row| row as f32).collect(), 1);
    rows.into_iter().map(|row| row as usize).collect()
}

/// Every tensor of the decoder, in the order of a forward pass.
///
/// # Errors
/// A tensor that llama.cpp has under no name known here.
pub fn tensors(spec: &DecoderSpec) -> Result<Vec<Tensor>, Error> {
    let table = |path: &str| tensors::table(spec, path);
    let of_norm = |name: &str, norm: &NormSpec, sources: Vec<Expected>| {
        let change = if norm.kind.is_one_plus() { Change::PlusOne } else { Change::None };
        let tensor = |source| Tensor { change, ..Tensor::of(name, Role::Vector, source) };
        sources.into_iter().map(tensor).collect::<Vec<_>>()
    };
    let mut all = vec![Tensor::of("token_embd", Role::Embedding, table(spec.paths.embedding))];
    if let Some(per_layer) = &spec.per_layer {
        let (numbers, norm) = (per_layer.numbers(), &per_layer.norm);
        let table = tensors::weight(per_layer.table, vec![per_layer.rows, numbers]);
        let projection = tensors::weight(per_layer.projection, vec![numbers, spec.hidden_size]);
        all.push(Tensor::of("per_layer_token_embd", Role::Embedding, table));
        all.push(Tensor::of("per_layer_model_proj", Role::Whole, projection));
        all.extend(of_norm("per_layer_proj_norm", norm, tensors::of_norm(norm, norm.path)));
    }
    for (layer, layer_spec) in spec.layers.iter().enumerate() {
        for tensor in layer_spec.tensors() {
            let sources = tensors::of_layer(spec, layer, tensor);
            match tensor {
                LayerTensor::Norm(norm) => {
                    all.extend(of_norm(&format!("blk.{layer}.{}", norm.gguf), norm, sources));
                }
                LayerTensor::Constant(constant) => {
                    let Some(named) = mixers::constant(layer_spec, constant) else {
                        return Err(not_carried(
                            spec,
                            format!("`{}` has no place in the file", constant.name),
                        ));
                    };
                    all.extend(sources.into_iter().map(|source| Tensor {
                        name: format!("blk.{layer}.{}", named.name),
                        rows: named.rows.clone(),
                        change: named.change,
                        squeezed: named.squeezed,
                        ..Tensor::of("", Role::Vector, source)
                    }));
                }
                LayerTensor::Projection(projection) if projection.role.is_routed() => {
                    let Some(name) = experts::stacked_name(projection.role) else { continue };
                    let role = match projection.role {
                        projection::Role::ExpertDown => Role::Down { layer },
                        _ => Role::Matrix,
                    };
                    for source in sources {
                        let mxfp4 = projection.mxfp4 && source.projection;
                        let own =
                            Tensor { mxfp4, ..Tensor::of(&format!("blk.{layer}.{name}"), role, source) };
                        match all.iter_mut().rev().find(|tensor| tensor.name == own.name) {
                            Some(stacked) => stacked.stack.push(own.source),
                            None => all.push(own),
                        }
                    }
                }
                LayerTensor::Projection(projection) => {
                    let role = projection.role;
                    if let Some(parts) = Rows::apart(spec, role, projection.shape[0]) {
                        for (source, (part, rows)) in
                            sources.iter().flat_map(|source| parts.iter().map(move |part| (source, part)))
                        {
                            let name = format!("blk.{layer}.{part}");
                            let whole = Tensor::of(&name, Role::Matrix, source.clone());
                            all.push(Tensor { rows: rows.clone(), ..whole });
                        }
                        continue;
                    }
                    let name = projection_name(spec, layer, projection)?;
                    let (rows, columns) = (Rows::of(spec, layer, role), Rows::of_columns(spec, layer, role));
                    let role = match role {
                        projection::Role::Value | projection::Role::QueryKeyValue => Role::Value { layer },
                        projection::Role::Mixed if layer_spec.short_conv().is_none() => Role::Value { layer },
                        projection::Role::Down => Role::Down { layer },
                        _ => Role::Matrix,
                    };
                    all.extend(sources.into_iter().map(|source| {
                        let columns = if source.shape.len() > 1 { columns.clone() } else { Rows::All };
                        Tensor { rows: rows.clone(), columns, ..Tensor::of(&name, role, source) }
                    }));
                }
            }
        }
    }
    let norm = &spec.final_norm;
    all.extend(of_norm(norm.gguf, norm, tensors::of_norm(norm, norm.path)));
    if !spec.tied {
        all.push(Tensor::of("output", Role::Head, table(spec.paths.head)));
    }
    all.extend(tensors::head_bias(spec).map(|bias| Tensor::of("output", Role::Vector, bias)));
    Ok(all)
}

/// Tensors that no checkpoint has: divisors of rotary frequencies, and weights of norms that carry a factor.
pub(super) fn computed(spec: &DecoderSpec) -> Vec<(String, Vec<f32>)> {
    let divisors = positions::divisors(spec).into_iter().map(|(name, divisors)| (name.to_owned(), divisors));
    let carries = spec.gguf.is_some_and(|gguf| gguf.scales == Scales::QueryNorm);
    let norms = attentions(spec).enumerate().filter(|_| carries).flat_map(|(layer, attention)| {
        let dim = attention.heads.dim;
        let factor = attention.scaling * (dim as f32).sqrt();
        [("q", factor), ("k", 1.0)]
            .map(|(of, factor)| (format!("blk.{layer}.attn_{of}_norm.weight"), vec![factor; dim]))
    });
    divisors.chain(norms).collect()
}

/// llama.cpp's name of a projection's weight, without `.weight`.
///
/// # Errors
/// A projection that an adapter can be on there, and not in llama.cpp.
pub fn projection_name(
    spec: &DecoderSpec,
    layer: usize,
    projection: &ProjectionSpec,
) -> Result<String, Error> {
    let (role, layer_spec) = (projection.role, &spec.layers[layer]);
    if let Some(name) = experts::shared_name(layer_spec, projection) {
        return Ok(format!("blk.{layer}.{name}"));
    }
    let convolves = layer_spec.short_conv().is_some();
    let name = match role {
        projection::Role::Query => "attn_q",
        projection::Role::Key => "attn_k",
        projection::Role::Value => "attn_v",
        projection::Role::Output => "attn_output",
        projection::Role::Gate => "ffn_gate",
        projection::Role::Up => "ffn_up",
        projection::Role::Down => "ffn_down",
        projection::Role::QueryKeyValue => "attn_qkv",
        projection::Role::GateUp if is_separated(spec, role) => {
            return Err(not_carried(
                spec,
                "llama.cpp has gate and up apart, where an adapter on both has no place; merge it first",
            ));
        }
        projection::Role::GateUp => "ffn_up",
        projection::Role::PartGate => "inp_gate",
        projection::Role::PartOutput => "proj",
        projection::Role::MixerGate => "attn_gate",
        projection::Role::Mixed if convolves => "shortconv.in_proj",
        projection::Role::Mixed => "attn_qkv",
        projection::Role::Write => "ssm_beta",
        projection::Role::Decay => "ssm_alpha",
        projection::Role::MixerOutput if convolves => "shortconv.out_proj",
        projection::Role::MixerOutput => "ssm_out",
        // All experts together.
        projection::Role::ExpertGate => "ffn_gate_exps",
        projection::Role::ExpertUp => "ffn_up_exps",
        projection::Role::ExpertDown => "ffn_down_exps",
    };
    Ok(format!("blk.{layer}.{name}"))
}

/// Whether a projection to gate and up is two tensors in the file.
pub(super) fn is_separated(spec: &DecoderSpec, role: projection::Role) -> bool {
    role == projection::Role::GateUp && spec.gguf.is_some_and(|gguf| gguf.separates_gate_and_up)
}
