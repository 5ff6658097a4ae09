//! A decoder in llama.cpp's terms: architecture, hyperparameters, tensor names, and the order of the rows of q and k.
//!
//! | family | architecture | rotation |
//! |---|---|---|
//! | llama, mistral | `llama` | rotates pairs of adjacent rows, so q and k are reordered |
//! | qwen2, qwen3 | `qwen2`, `qwen3` | rotates pairs across the halves of a head, as here |
//!
//! A feature that llama.cpp lacks is an error; for sliding windows and dynamic scaling the context length is limited to
//! where they have no effect, with a note.

use rayon::iter::ParallelIterator;
use rayon::slice::ParallelSliceMut;

use super::super::Error;
use super::container::{Keys, Value};
use super::mixture;
use crate::adapter::projection::Projection;
use crate::model::DecoderSpec;
use crate::model::rotary::{RotaryScaling, RotarySpec};
use crate::model::tensors::{self, Expected, KEY_NORM, QUERY_NORM};

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
pub fn architecture(spec: &DecoderSpec) -> Result<&'static str, Error> {
    match spec.family {
        "llama" | "mistral" => Ok("llama"),
        "qwen2" => Ok("qwen2"),
        "qwen3" if spec.biases.attention_output => Err(not_carried(
            spec,
            "llama.cpp has no bias on the attention output of a qwen3 (`attention_bias` in config.json)",
        )),
        "qwen3" => Ok("qwen3"),
        other => Err(Error::NotInGguf {
            subject: format!("the family {other}"),
            reason: "supported are llama, mistral, qwen2 and qwen3".into(),
        }),
    }
}

fn not_carried(spec: &DecoderSpec, reason: impl Into<String>) -> Error {
    Error::NotInGguf { subject: format!("this {}", spec.family), reason: reason.into() }
}

/// Whether the rows of q and k are reordered.
fn reorders(spec: &DecoderSpec) -> bool {
    matches!(spec.family, "llama" | "mistral")
}

/// The architecture's keys, and notes for the user.
///
/// # Errors
/// The model has a feature that llama.cpp lacks.
pub fn hyperparameters(spec: &DecoderSpec) -> Result<(Keys, Vec<String>), Error> {
    let architecture = architecture(spec)?;
    let mut keys = Keys::new();
    let mut put = |key: &str, value: Value| keys.push((format!("{architecture}.{key}"), value));
    let size = |size: usize| Value::U32(u32::try_from(size).unwrap_or(u32::MAX));
    let mut notes = Vec::new();
    let mut context = spec.max_position_embeddings;
    if let Some(window) = spec.sliding_window.iter().flatten().min()
        && *window < context
    {
        context = *window;
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
    put("block_count", size(spec.layers));
    put("feed_forward_length", size(spec.intermediate_size));
    put("attention.head_count", size(spec.attention_heads));
    put("attention.head_count_kv", size(spec.key_value_heads));
    put("attention.key_length", size(spec.head_dim));
    put("attention.value_length", size(spec.head_dim));
    put("attention.layer_norm_rms_epsilon", Value::F32(spec.rms_norm_epsilon as f32));
    put("vocab_size", size(spec.vocab_size));
    put("rope.dimension_count", size(spec.head_dim));
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
    let shared = match spec.family {
        "qwen2" => true,
        _ => reorders(spec) && spec.attention_heads != spec.key_value_heads,
    };
    mixture::Model { layers: spec.layers, tied: spec.tied, shares_values_widely: spec.layers == 80 && shared }
}

/// Every tensor of the decoder, in the order of a forward pass.
pub fn tensors(spec: &DecoderSpec) -> Vec<Tensor> {
    tensors::expected(spec).into_iter().filter_map(|source| place(spec, source)).collect()
}

/// llama.cpp's name of a projection's weight, without `.weight`.
pub fn projection_name(layer: usize, projection: Projection) -> String {
    let name = match projection {
        Projection::Query => "attn_q",
        Projection::Key => "attn_k",
        Projection::Value => "attn_v",
        Projection::Output => "attn_output",
        Projection::Gate => "ffn_gate",
        Projection::Up => "ffn_up",
        Projection::Down => "ffn_down",
    };
    format!("blk.{layer}.{name}")
}

/// Whether the rows of a projection are reordered.
pub fn is_reordered(spec: &DecoderSpec, projection: Projection) -> bool {
    reorders(spec) && matches!(projection, Projection::Query | Projection::Key)
}

fn place(spec: &DecoderSpec, source: Expected) -> Option<Tensor> {
    let names = &spec.names;
    let plain = |name: &str, role: Role, source: Expected| {
        Some(Tensor { name: name.to_owned(), source, role, reordered: false })
    };
    if source.name == names.embedding {
        return plain("token_embd.weight", Role::Embedding, source);
    }
    if source.name == names.final_norm {
        return plain("output_norm.weight", Role::Vector, source);
    }
    if source.name == names.head {
        return plain("output.weight", Role::Head, source);
    }
    let inside = source.name.strip_prefix(names.layers)?.strip_prefix('.')?;
    let (layer, inside) = inside.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let attention = inside.strip_prefix(names.attention).and_then(|rest| rest.strip_prefix('.'));
    let norm = match (inside, attention) {
        (name, _) if name == names.attention_norm => Some("attn_norm"),
        (name, _) if name == names.feed_forward_norm => Some("ffn_norm"),
        (_, Some(QUERY_NORM)) => Some("attn_q_norm"),
        (_, Some(KEY_NORM)) => Some("attn_k_norm"),
        _ => None,
    };
    if let Some(norm) = norm {
        return plain(&format!("blk.{layer}.{norm}.weight"), Role::Vector, source);
    }
    let (module, part) = source.name.rsplit_once('.')?;
    let projection =
        Projection::ALL.into_iter().find(|projection| names.projection(layer, *projection) == module)?;
    let role = match (part, projection) {
        ("bias", _) => Role::Vector,
        (_, Projection::Value) => Role::Value { layer },
        (_, Projection::Down) => Role::Down { layer },
        _ => Role::Matrix,
    };
    let name = format!("{}.{part}", projection_name(layer, projection));
    Some(Tensor { name, source, role, reordered: is_reordered(spec, projection) })
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
            assert_eq!(tensors(&spec).len(), tensors::expected(&spec).len());
        }
        let names: Vec<String> = tensors(&spec(json!({}))).into_iter().map(|tensor| tensor.name).collect();
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
