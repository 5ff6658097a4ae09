//! A decoder in llama.cpp's terms: architecture, hyperparameters, tensor names, and the order of the rows of q and k.
//!
//! | family | architecture | rotation |
//! |---|---|---|
//! | llama, mistral | `llama` | rotates pairs of adjacent rows, so q and k are reordered |
//! | smollm3, ministral3, granite, granitemoehybrid | `smollm3`, `mistral3`, `granite` | alike |
//! | qwen2, qwen3, phi3, olmo2, olmo3, seed_oss, hunyuan_v1_dense, exaone4 | their own | rotates pairs across the halves of a head, as here |
//! | qwen3_moe, qwen2_moe, olmoe; mixtral | their own; `llama` | alike; reordered |
//!
//! A feature that llama.cpp lacks is an error; for sliding windows and dynamic scaling the context length is limited to
//! where they have no effect, with a note.

use std::ops::Range;
use std::sync::Arc;

use rayon::iter::ParallelIterator;
use rayon::slice::ParallelSliceMut;

use super::super::Error;
use super::container::{Keys, Value};
use super::{experts, mixture, positions};
use crate::adapter::projection;
use crate::model::decoder_spec::{GgufSpec, RotaryPairs};
use crate::model::parts::{GatedSpec, LayerSpec, LayerTensor};
use crate::model::tensors::{self, Expected};
use crate::model::{DecoderSpec, family};

/// The role of a tensor, as far as its type depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A norm or a bias.
    Vector,
    /// The embedding table.
    Embedding,
    /// The output head.
    Head,
    /// The value projection of a layer.
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

/// A tensor of the decoder and its place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the GGUF file.
    pub name: String,
    /// Its tensor in the checkpoint.
    pub source: Expected,
    /// Its role.
    pub role: Role,
    /// Whether its rows are reordered.
    pub reordered: bool,
    /// The rows of the checkpoint's tensor that it holds; `None`: all.
    pub rows: Option<Range<usize>>,
    /// Further tensors of the checkpoint that follow: those of the other experts.
    pub stack: Vec<Expected>,
}

impl Tensor {
    /// Its tensors in the checkpoint.
    pub fn sources(&self) -> impl Iterator<Item = &Expected> {
        std::iter::once(&self.source).chain(&self.stack)
    }

    /// Its shape in the file, rows first.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.source.shape.clone();
        if !self.stack.is_empty() {
            shape.insert(0, 1 + self.stack.len());
        }
        if let (Some(rows), Some(first)) = (&self.rows, shape.first_mut()) {
            *first = rows.len();
        }
        shape
    }
}

/// llama.cpp's name of the architecture.
///
/// # Errors
/// A family or a variant of one that llama.cpp does not have.
pub fn architecture(spec: &DecoderSpec) -> Result<&'static str, Error> {
    let Some(gguf) = spec.gguf else {
        let known = family::FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ");
        return Err(Error::NotInGguf {
            subject: format!("the family {}", spec.family),
            reason: format!("its architecture is not known; known families are {known}"),
        });
    };
    let biased = |layer: &Arc<LayerSpec>| layer.attention().is_some_and(|attention| attention.output.bias);
    if gguf.architecture == "qwen3" && spec.layers.iter().any(biased) {
        return Err(not_carried(
            spec,
            "llama.cpp has no bias on the attention output of a qwen3 (`attention_bias` in config.json)",
        ));
    }
    Ok(gguf.architecture)
}

pub(super) fn not_carried(spec: &DecoderSpec, reason: impl Into<String>) -> Error {
    Error::NotInGguf { subject: format!("this {}", spec.family), reason: reason.into() }
}

/// The architecture's keys, and notes for the user.
///
/// # Errors
/// The model has a feature that llama.cpp lacks.
pub fn hyperparameters(spec: &DecoderSpec) -> Result<(Keys, Vec<String>), Error> {
    let architecture = architecture(spec)?;
    let Some(gguf) = spec.gguf else { return Err(not_carried(spec, "its architecture is not known")) };
    let width = |layer: &LayerSpec| match layer.mixture() {
        Some(mixture) => Some(mixture.intermediate()),
        None => layer.gated().map(GatedSpec::intermediate),
    };
    let parts = spec.layers.first().and_then(|layer| Some((layer.attention()?.heads, width(layer)?)));
    let Some((heads, intermediate)) = parts else { return Err(not_carried(spec, "it has no layers")) };
    let mut keys = Keys::new();
    let mut put = |key: &str, value: Value| keys.push((format!("{architecture}.{key}"), value));
    let size = |size: usize| Value::U32(u32::try_from(size).unwrap_or(u32::MAX));
    let mut notes = Vec::new();
    put("embedding_length", size(spec.hidden_size));
    put("block_count", size(spec.layers.len()));
    put("feed_forward_length", size(intermediate));
    put("attention.head_count", size(heads.queries));
    put("attention.head_count_kv", size(heads.keys));
    put("attention.key_length", size(heads.dim));
    put("attention.value_length", size(heads.dim));
    put("attention.layer_norm_rms_epsilon", Value::F32(spec.final_norm.kind.epsilon() as f32));
    put("vocab_size", size(spec.vocab_size));
    experts::put(spec, gguf, &mut put)?;
    scales(spec, gguf, &mut put)?;
    let context = positions::put(spec, gguf, &mut keys, &mut notes)?;
    keys.insert(0, (format!("{architecture}.context_length"), size(context)));
    Ok((keys, notes))
}

/// The keys of factors on embeddings, scores, blocks and logits.
fn scales(spec: &DecoderSpec, gguf: GgufSpec, put: &mut impl FnMut(&str, Value)) -> Result<(), Error> {
    let attention = spec.layers.first().and_then(|layer| layer.attention());
    let scaling = attention.map_or(1.0, |attention| attention.scaling);
    let usual = 1.0 / (head_dim(spec) as f32).sqrt();
    let block = spec.layers.first().and_then(|layer| layer.blocks().first()).map_or(1.0, |block| block.scale);
    if gguf.takes_scales {
        put("attention.scale", Value::F32(scaling));
        put("embedding_scale", Value::F32(spec.embedding_scale));
        put("residual_scale", Value::F32(block));
        put("logit_scale", Value::F32(1.0 / spec.logit_scale));
        return Ok(());
    }
    match (scaling, spec.embedding_scale, block, spec.logit_scale) == (usual, 1.0, 1.0, 1.0) {
        true => Ok(()),
        false => Err(not_carried(
            spec,
            format!("llama.cpp has no keys for the factors of a {}", gguf.architecture),
        )),
    }
}

/// The properties of the model that the rules of mixtures depend on.
pub fn mixed(spec: &DecoderSpec) -> mixture::Model {
    let heads = spec.layers.first().and_then(|layer| layer.attention()).map(|attention| attention.heads);
    let shared = match spec.gguf.map(|gguf| gguf.architecture) {
        Some("qwen2") => true,
        Some("llama") => heads.is_some_and(|heads| heads.queries != heads.keys),
        _ => false,
    };
    let layers = spec.layers.len();
    mixture::Model { layers, tied: spec.tied, shares_values_widely: layers == 80 && shared }
}

/// Every tensor of the decoder, in the order of a forward pass.
///
/// # Errors
/// A projection that llama.cpp has under no name known here.
pub fn tensors(spec: &DecoderSpec) -> Result<Vec<Tensor>, Error> {
    let plain = |name: &str, role: Role, source: Expected| Tensor {
        name: format!("{name}.weight"),
        source,
        role,
        reordered: false,
        rows: None,
        stack: Vec::new(),
    };
    let table = |path: &str| tensors::table(spec, path);
    let mut all = vec![plain("token_embd", Role::Embedding, table(spec.paths.embedding))];
    for (layer, layer_spec) in spec.layers.iter().enumerate() {
        for tensor in layer_spec.tensors() {
            let sources = tensors::of_layer(spec, layer, tensor).into_iter();
            match tensor {
                // Others are of a recurrent mixer, whose projections are refused.
                LayerTensor::Constant(constant) => {
                    let Some((name, is_vector)) = experts::constant_name(layer_spec, constant) else {
                        continue;
                    };
                    let flat = |source: Expected| match is_vector {
                        true => Expected { shape: vec![source.shape.iter().product()], ..source },
                        false => source,
                    };
                    let name = format!("blk.{layer}.{name}");
                    all.extend(sources.map(|source| plain(&name, Role::Vector, flat(source))));
                }
                LayerTensor::Projection(projection) if projection.role.is_routed() => {
                    let Some(name) = experts::stacked_name(projection.role) else { continue };
                    let name = format!("blk.{layer}.{name}");
                    let role = match projection.role {
                        projection::Role::ExpertDown => Role::Down { layer },
                        _ => Role::Matrix,
                    };
                    let file_name = format!("{name}.weight");
                    let stacked = all.iter_mut().rev().find(|tensor| tensor.name == file_name);
                    match stacked {
                        Some(stacked) => stacked.stack.extend(sources),
                        None => all.extend(sources.map(|source| plain(&name, role, source))),
                    }
                }
                LayerTensor::Norm(norm) => {
                    let name = format!("blk.{layer}.{}", norm.gguf);
                    all.extend(sources.map(|source| plain(&name, Role::Vector, source)));
                }
                LayerTensor::Projection(projection) if is_separated(spec, projection.role) => {
                    let half = projection.shape[0] / 2;
                    for source in sources {
                        for (part, rows) in [("ffn_gate", 0..half), ("ffn_up", half..2 * half)] {
                            let name = format!("blk.{layer}.{part}");
                            let rows = Some(rows);
                            all.push(Tensor { rows, ..plain(&name, Role::Matrix, source.clone()) });
                        }
                    }
                }
                LayerTensor::Projection(projection) => {
                    let name = match experts::shared_name(layer_spec, projection) {
                        Some(name) => format!("blk.{layer}.{name}"),
                        None => projection_name(spec, layer, projection.role)?,
                    };
                    let role = match projection.role {
                        projection::Role::Value => Role::Value { layer },
                        projection::Role::Down => Role::Down { layer },
                        _ => Role::Matrix,
                    };
                    let reordered = is_reordered(spec, projection.role);
                    all.extend(sources.map(|source| match source.projection {
                        true => Tensor { reordered, ..plain(&name, role, source) },
                        false => {
                            let name = format!("{name}.bias");
                            Tensor {
                                name,
                                source,
                                role: Role::Vector,
                                reordered,
                                rows: None,
                                stack: Vec::new(),
                            }
                        }
                    }));
                }
            }
        }
    }
    all.push(plain("output_norm", Role::Vector, final_norm(spec)));
    if !spec.tied {
        all.push(plain("output", Role::Head, table(spec.paths.head)));
    }
    Ok(all)
}

fn final_norm(spec: &DecoderSpec) -> Expected {
    tensors::weight(spec.final_norm.path, vec![spec.final_norm.width])
}

/// llama.cpp's name of a projection's weight, without `.weight`.
///
/// # Errors
/// A projection whose name is not known here.
pub fn projection_name(spec: &DecoderSpec, layer: usize, role: projection::Role) -> Result<String, Error> {
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
                "llama.cpp has gate and up apart, where an adapter on both has no place",
            ));
        }
        projection::Role::PartGate | projection::Role::PartOutput => {
            return Err(not_carried(spec, "embeddings by layer have no place in the file yet"));
        }
        projection::Role::Mixed
        | projection::Role::MixerGate
        | projection::Role::Write
        | projection::Role::Decay
        | projection::Role::MixerOutput => {
            return Err(not_carried(spec, "recurrent mixers have no place in the file yet"));
        }
        projection::Role::ExpertGate | projection::Role::ExpertUp | projection::Role::ExpertDown => {
            return Err(not_carried(spec, "llama.cpp takes no adapter on single experts; merge it first"));
        }
        projection::Role::GateUp => "ffn_up",
    };
    Ok(format!("blk.{layer}.{name}"))
}

/// Whether a projection to gate and up is two tensors in the file.
fn is_separated(spec: &DecoderSpec, role: projection::Role) -> bool {
    role == projection::Role::GateUp && spec.gguf.is_some_and(|gguf| gguf.separates_gate_and_up)
}

/// Whether the rows of a projection are reordered.
pub fn is_reordered(spec: &DecoderSpec, role: projection::Role) -> bool {
    let neighbours = spec.gguf.is_some_and(|gguf| gguf.pairs == RotaryPairs::Neighbours);
    neighbours && matches!(role, projection::Role::Query | projection::Role::Key)
}

/// Width of a head; llama.cpp has one for all layers.
pub fn head_dim(spec: &DecoderSpec) -> usize {
    spec.layers.iter().find_map(|layer| layer.attention()).map_or(1, |attention| attention.heads.dim)
}

/// Interleaves rows i and i + half of every head, which are rotated together.
///
/// `columns` is the length of a row: 1 for a bias.
pub fn reorder_rows(values: &mut [f32], head_dim: usize, columns: usize) {
    let half = head_dim / 2;
    values.par_chunks_mut(head_dim * columns).for_each(|head| {
        let old = head.to_vec();
        for (row, new) in head.chunks_exact_mut(columns).enumerate() {
            let from = row % 2 * half + row / 2;
            new.copy_from_slice(&old[from * columns..][..columns]);
        }
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::family::decoder_spec;

    fn spec(extra: serde_json::Value) -> DecoderSpec {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64,
        });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        decoder_spec(&config).unwrap()
    }

    #[test]
    fn every_tensor_has_a_name() {
        for extra in [
            json!({"attention_bias": true, "mlp_bias": true}),
            json!({"model_type": "qwen3", "tie_word_embeddings": true, "head_dim": 8}),
            json!({"model_type": "qwen2"}),
            json!({"model_type": "mistral"}),
        ] {
            let spec = spec(extra);
            let sources: Vec<Expected> =
                tensors(&spec).unwrap().into_iter().map(|tensor| tensor.source).collect();
            assert_eq!(sources, tensors::expected(&spec));
        }
        let names: Vec<String> =
            tensors(&spec(json!({}))).unwrap().into_iter().map(|tensor| tensor.name).collect();
        assert_eq!(
            names,
            [
                "token_embd.weight",
                "blk.0.attn_norm.weight",
                "blk.0.attn_q.weight",
                "blk.0.attn_k.weight",
                "blk.0.attn_v.weight",
                "blk.0.attn_output.weight",
                "blk.0.ffn_norm.weight",
                "blk.0.ffn_gate.weight",
                "blk.0.ffn_up.weight",
                "blk.0.ffn_down.weight",
                "output_norm.weight",
                "output.weight"
            ]
        );
    }

    #[test]
    fn every_architecture_has_its_keys() {
        let keys = |extra: serde_json::Value| -> Vec<(String, Value)> {
            let spec = spec(extra);
            assert!(!tensors(&spec).unwrap().is_empty());
            hyperparameters(&spec).unwrap().0
        };
        let find = |keys: &[(String, Value)], name: &str| -> Value {
            keys.iter()
                .find(|(key, _)| key == name)
                .unwrap_or_else(|| panic!("{name} is not in {keys:?}"))
                .1
                .clone()
        };
        let smollm3 = keys(json!({"model_type": "smollm3", "num_hidden_layers": 4}));
        assert_eq!(find(&smollm3, "smollm3.rope.freq_base"), Value::F32(2e6));
        let ministral = keys(json!({"model_type": "ministral3"}));
        assert_eq!(find(&ministral, "mistral3.attention.temperature_scale"), Value::F32(0.1));
        assert_eq!(find(&ministral, "mistral3.rope.scaling.yarn_log_multiplier"), Value::F32(1.0));
        let longrope = json!({"model_type": "phi3", "original_max_position_embeddings": 32, "rope_scaling":
            {"type": "longrope", "short_factor": vec![1.0; 4], "long_factor": vec![2.0; 4]}});
        assert_eq!(find(&keys(longrope.clone()), "phi3.attention.sliding_window"), Value::U32(0));
        assert_eq!(positions::divisors(&spec(longrope))[0], ("rope_factors_long.weight", vec![2.0; 4]));
        let olmo3 = keys(json!({"model_type": "olmo3", "num_hidden_layers": 4, "sliding_window": 8}));
        assert_eq!(
            find(&olmo3, "olmo2.attention.sliding_window_pattern"),
            Value::Bools(vec![true, true, true, false])
        );
        let granite =
            keys(json!({"model_type": "granite", "logits_scaling": 8.0, "residual_multiplier": 0.5,
            "attention_multiplier": 0.25, "embedding_multiplier": 12.0}));
        for (key, value) in [
            ("logit_scale", 8.0),
            ("residual_scale", 0.5),
            ("attention.scale", 0.25),
            ("embedding_scale", 12.0),
        ] {
            assert_eq!(find(&granite, &format!("granite.{key}")), Value::F32(value));
        }
        for (family, architecture) in [
            ("seed_oss", "seed_oss"),
            ("hunyuan_v1_dense", "hunyuan-dense"),
            ("exaone4", "exaone4"),
            ("olmo2", "olmo2"),
        ] {
            let changes =
                json!({"model_type": family, "sliding_window": null, "head_dim": 8, "attention_dropout": 0});
            let mut changes = changes;
            if family != "exaone4" {
                changes.as_object_mut().unwrap().remove("sliding_window");
            }
            assert_eq!(find(&keys(changes), &format!("{architecture}.block_count")), Value::U32(1));
        }
    }

    #[test]
    fn experts_of_a_layer_are_one_tensor() {
        let mixture = |more: serde_json::Value| {
            let mut config = json!({"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec(config)
        };
        let qwen3 = mixture(json!({"model_type": "qwen3_moe", "norm_topk_prob": true}));
        let all = tensors(&qwen3).unwrap();
        let shape = |name: &str| all.iter().find(|tensor| tensor.name == name).unwrap().shape();
        assert_eq!(shape("blk.0.ffn_gate_inp.weight"), [3, 32]);
        assert_eq!(shape("blk.0.ffn_gate_exps.weight"), [3, 16, 32]);
        assert_eq!(shape("blk.0.ffn_up_exps.weight"), [3, 16, 32]);
        assert_eq!(shape("blk.0.ffn_down_exps.weight"), [3, 32, 16]);
        let sources: usize = all.iter().map(|tensor| tensor.sources().count()).sum();
        assert_eq!(sources, tensors::expected(&qwen3).len());
        let keys = hyperparameters(&qwen3).unwrap().0;
        assert!(keys.contains(&("qwen3moe.expert_feed_forward_length".into(), Value::U32(16))), "{keys:?}");
        let qwen2 = mixture(json!({"model_type": "qwen2_moe", "shared_expert_intermediate_size": 24}));
        let all = tensors(&qwen2).unwrap();
        let shape = |name: &str| all.iter().find(|tensor| tensor.name == name).unwrap().shape();
        assert_eq!(shape("blk.0.ffn_gate_inp_shexp.weight"), [32]);
        assert_eq!(shape("blk.0.ffn_down_shexp.weight"), [32, 24]);
        let other = mixture(json!({"model_type": "qwen3_moe", "norm_topk_prob": false}));
        let error = hyperparameters(&other).unwrap_err().to_string();
        assert!(error.contains("weighs the experts"), "{error}");
    }

    /// Granite 4 stacks gate and up, llama.cpp does not.
    #[test]
    fn stacked_rows_are_separated() {
        let granite = spec(json!({"model_type": "granitemoehybrid", "num_local_experts": 0,
            "layer_types": ["attention"], "shared_intermediate_size": 40, "tie_word_embeddings": true}));
        let all = tensors(&granite).unwrap();
        let find = |name: &str| all.iter().find(|tensor| tensor.name == name).unwrap();
        let (gate, up) = (find("blk.0.ffn_gate.weight"), find("blk.0.ffn_up.weight"));
        assert_eq!((gate.shape(), up.shape()), (vec![40, 32], vec![40, 32]));
        assert_eq!((gate.rows.clone(), up.rows.clone()), (Some(0..40), Some(40..80)));
        assert_eq!(gate.source, up.source);
    }

    #[test]
    fn rows_that_rotate_together_become_neighbours() {
        let mut values: Vec<f32> = (0..16).map(|value| value as f32).collect();
        reorder_rows(&mut values, 4, 2);
        assert_eq!(values, [0., 1., 4., 5., 2., 3., 6., 7., 8., 9., 12., 13., 10., 11., 14., 15.]);
        let mut bias = vec![0., 1., 2., 3., 4., 5.];
        reorder_rows(&mut bias, 6, 1);
        assert_eq!(bias, [0., 3., 1., 4., 2., 5.]);
    }

    #[test]
    fn what_llama_cpp_does_not_compute_is_said_or_refused() {
        let context = |spec: &DecoderSpec| {
            let (keys, notes) = hyperparameters(spec).unwrap();
            (keys.into_iter().find(|(key, _)| key.ends_with("context_length")).unwrap().1, notes.len())
        };
        assert_eq!(context(&spec(json!({}))), (Value::U32(64), 0));
        assert_eq!(
            context(&spec(json!({"model_type": "mistral", "sliding_window": 12}))),
            (Value::U32(12), 1)
        );
        let dynamic = json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}});
        assert_eq!(context(&spec(dynamic)), (Value::U32(64), 1));
        let biased = spec(json!({"model_type": "qwen3", "attention_bias": true, "head_dim": 8}));
        let error = hyperparameters(&biased).unwrap_err().to_string();
        assert!(error.contains("qwen3") && error.contains("attention_bias"), "{error}");
        let llama3 = json!({"model_type": "qwen2", "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}});
        let error = hyperparameters(&spec(llama3)).unwrap_err().to_string();
        assert!(error.contains("llama3"), "{error}");
    }
}
