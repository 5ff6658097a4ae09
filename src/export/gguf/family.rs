//! A decoder in llama.cpp's terms: architecture, hyperparameters, tensor names, and the order of the rows of q and k.
//!
//! | family | architecture | rotation |
//! |---|---|---|
//! | llama, mistral | `llama` | rotates pairs of adjacent rows, so q and k are reordered |
//! | qwen2, qwen3 | `qwen2`, `qwen3` | rotates pairs across the halves of a head, as here |
//!
//! A feature that llama.cpp lacks is an error; for sliding windows and dynamic scaling the context length is limited to
//! where they have no effect, with a note.

use std::sync::Arc;

use rayon::iter::ParallelIterator;
use rayon::slice::ParallelSliceMut;

use super::super::Error;
use super::container::{Keys, Value};
use super::mixture;
use crate::adapter::projection;
use crate::model::decoder_spec::RotaryPairs;
use crate::model::parts::{LayerSpec, LayerTensor};
use crate::model::rotary::{RotaryScaling, RotarySpec};
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

fn not_carried(spec: &DecoderSpec, reason: impl Into<String>) -> Error {
    Error::NotInGguf { subject: format!("this {}", spec.family), reason: reason.into() }
}

/// The architecture's keys, and notes for the user.
///
/// # Errors
/// The model has a feature that llama.cpp lacks.
pub fn hyperparameters(spec: &DecoderSpec) -> Result<(Keys, Vec<String>), Error> {
    let architecture = architecture(spec)?;
    let parts = spec.layers.first().and_then(|layer| Some((layer.attention()?.heads, layer.gated()?)));
    let Some((heads, gated)) = parts else { return Err(not_carried(spec, "it has no layers")) };
    let mut keys = Keys::new();
    let mut put = |key: &str, value: Value| keys.push((format!("{architecture}.{key}"), value));
    let size = |size: usize| Value::U32(u32::try_from(size).unwrap_or(u32::MAX));
    let mut notes = Vec::new();
    let mut context = spec.max_position_embeddings;
    let windows = spec.layers.iter().filter_map(|layer| layer.attention()?.window);
    if let Some(window) = windows.min()
        && window < context
    {
        context = window;
        notes.push(format!(
            "llama.cpp has no sliding window for {architecture}, so the context length is limited to the window, {window} \
             (the model supports {})",
            spec.max_position_embeddings
        ));
    }
    if let RotaryScaling::Dynamic { .. } = spec.rotary.scaling {
        notes.push(format!(
            "llama.cpp has no dynamic rotary scaling; it has no effect up to the context length of {context}"
        ));
    }
    put("context_length", size(context));
    put("embedding_length", size(spec.hidden_size));
    put("block_count", size(spec.layers.len()));
    put("feed_forward_length", size(gated.intermediate()));
    put("attention.head_count", size(heads.queries));
    put("attention.head_count_kv", size(heads.keys));
    put("attention.key_length", size(heads.dim));
    put("attention.value_length", size(heads.dim));
    put("attention.layer_norm_rms_epsilon", Value::F32(spec.final_norm.kind.epsilon as f32));
    put("vocab_size", size(spec.vocab_size));
    put("rope.dimension_count", size(heads.dim));
    put("rope.freq_base", Value::F32(spec.rotary.theta as f32));
    match spec.rotary.scaling {
        RotaryScaling::None | RotaryScaling::Dynamic { .. } => {}
        RotaryScaling::Llama3 { .. } if architecture == "llama" => {}
        RotaryScaling::Llama3 { .. } => {
            return Err(not_carried(
                spec,
                format!(
                    "llama.cpp supports rope type llama3 only for the llama architecture, not for {architecture}"
                ),
            ));
        }
        RotaryScaling::Linear { factor } => {
            put("rope.scaling.type", "linear".into());
            put("rope.scaling.factor", Value::F32(factor as f32));
        }
        RotaryScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
        } => {
            if !truncate {
                return Err(not_carried(
                    spec,
                    "llama.cpp rounds the ends of YaRN's ramp (`truncate` is false)",
                ));
            }
            put("rope.scaling.type", "yarn".into());
            put("rope.scaling.factor", Value::F32(factor as f32));
            put("rope.scaling.original_context_length", size(original_max_position_embeddings));
            put("rope.scaling.yarn_beta_fast", Value::F32(beta_fast as f32));
            put("rope.scaling.yarn_beta_slow", Value::F32(beta_slow as f32));
            // llama.cpp multiplies by the usual temperature itself; this is the remaining factor.
            let usual = 0.1 * factor.max(1.0).ln() + 1.0;
            put("rope.scaling.attn_factor", Value::F32((attention_factor / usual) as f32));
        }
    }
    Ok((keys, notes))
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
    };
    let table = |path: &str| tensors::table(spec, path);
    let mut all = vec![plain("token_embd", Role::Embedding, table(spec.paths.embedding))];
    for (layer, layer_spec) in spec.layers.iter().enumerate() {
        for tensor in layer_spec.tensors() {
            let sources = tensors::of_layer(spec, layer, tensor).into_iter();
            match tensor {
                // Only a recurrent mixer has any, and its projections are refused.
                LayerTensor::Constant(_) => {}
                LayerTensor::Norm(norm) => {
                    let name = format!("blk.{layer}.{}", norm.gguf);
                    all.extend(sources.map(|source| plain(&name, Role::Vector, source)));
                }
                LayerTensor::Projection(projection) => {
                    let name = projection_name(spec, layer, projection.role)?;
                    let role = match projection.role {
                        projection::Role::Value => Role::Value { layer },
                        projection::Role::Down => Role::Down { layer },
                        _ => Role::Matrix,
                    };
                    let reordered = is_reordered(spec, projection.role);
                    all.extend(sources.map(|source| match source.projection {
                        true => Tensor { reordered, ..plain(&name, role, source) },
                        false => {
                            Tensor { name: format!("{name}.bias"), source, role: Role::Vector, reordered }
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
        projection::Role::QueryKeyValue | projection::Role::GateUp => {
            return Err(not_carried(spec, "stacked projections have no place in the file yet"));
        }
        projection::Role::Mixed
        | projection::Role::MixerGate
        | projection::Role::Write
        | projection::Role::Decay
        | projection::Role::MixerOutput => {
            return Err(not_carried(spec, "recurrent mixers have no place in the file yet"));
        }
    };
    Ok(format!("blk.{layer}.{name}"))
}

/// Whether the rows of a projection are reordered.
pub fn is_reordered(spec: &DecoderSpec, role: projection::Role) -> bool {
    let neighbours = spec.gguf.is_some_and(|gguf| gguf.pairs == RotaryPairs::Neighbours);
    neighbours && matches!(role, projection::Role::Query | projection::Role::Key)
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

/// The divisors of each pair's frequency (`rope_freqs.weight`), for scalings that llama.cpp expresses that way.
pub fn frequency_divisors(spec: &DecoderSpec) -> Option<Vec<f32>> {
    let RotaryScaling::Llama3 { .. } = spec.rotary.scaling else { return None };
    let unscaled = RotarySpec { scaling: RotaryScaling::None, ..spec.rotary.clone() };
    let pairs = unscaled.inverse_frequencies(0).into_iter().zip(spec.rotary.inverse_frequencies(0));
    Some(pairs.map(|(unscaled, scaled)| (f64::from(unscaled) / f64::from(scaled)) as f32).collect())
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
