//! A decoder in llama.cpp's terms: architecture and hyperparameters.
//!
//! What each architecture computes is declared by its family (`model::gguf_spec`). A feature that llama.cpp lacks is an
//! error; for sliding windows and dynamic scaling the context length is limited to where they have no effect, with a
//! note.

use super::super::Error;
use super::container::{Keys, Value};
use super::mixers::{self, Attending};
use super::{experts, mixture, positions, scales};
use crate::adapter::projection;
use crate::model::DecoderSpec;
use crate::model::gguf_spec::{Biases, Fixed, GgufSpec};
use crate::model::parts::{AttentionSpec, LayerSpec, NormKind, PlainSpec, ProjectionSpec};

/// How llama.cpp takes the family.
///
/// # Errors
/// It does not.
pub(super) fn declared(spec: &DecoderSpec) -> Result<GgufSpec, Error> {
    spec.gguf.ok_or_else(|| Error::NotInGguf {
        subject: format!("the family {}", spec.family),
        reason: "llama.cpp has no architecture for it, or this version no place for its tensors; `tune merge` writes a folder for \
                 transformers"
            .into(),
    })
}

pub(super) fn not_carried(spec: &DecoderSpec, reason: impl Into<String>) -> Error {
    Error::NotInGguf { subject: format!("this {}", spec.family), reason: reason.into() }
}

pub(super) fn attentions(spec: &DecoderSpec) -> impl Iterator<Item = &AttentionSpec> {
    spec.layers.iter().filter_map(|layer| layer.attention())
}

pub(super) fn size(size: usize) -> Value {
    Value::U32(u32::try_from(size).unwrap_or(u32::MAX))
}

/// A number that layers have in common, or that of each.
fn by_layer(sizes: Vec<usize>) -> Value {
    match sizes.split_first() {
        Some((first, rest)) if rest.iter().any(|other| other != first) => {
            Value::I32s(sizes.iter().map(|size| *size as i32).collect())
        }
        first => size(first.map_or(0, |(first, _)| *first)),
    }
}

/// The architecture's keys, and notes for the user.
///
/// # Errors
/// The model has a feature that llama.cpp lacks.
pub fn hyperparameters(spec: &DecoderSpec) -> Result<(Keys, Vec<String>), Error> {
    let gguf = declared(spec)?;
    let no_layers = || not_carried(spec, "it has no layers with attention and a feed-forward block");
    let is_down = |projection: &&ProjectionSpec| projection.role == projection::Role::Down;
    let width = |layer: &LayerSpec| match layer.mixture() {
        Some(mixture) => Some(mixture.intermediate()),
        None => layer.projections().find(is_down).map(|down| down.shape[1]),
    };
    let widths: Vec<usize> = spec.layers.iter().filter_map(|layer| width(layer)).collect();
    if widths.len() < spec.layers.len() {
        return Err(no_layers());
    }
    let first = attentions(spec).next().ok_or_else(no_layers)?;
    let full = attentions(spec).find(|attention| attention.window.is_none()).unwrap_or(first);
    let sliding = attentions(spec).find(|attention| attention.window.is_some()).unwrap_or(full);
    check_biases(spec, gguf)?;
    check_epsilons(spec, gguf)?;
    if gguf.heads_fill_hidden && attentions(spec).any(|own| own.heads.widths()[0] != spec.hidden_size) {
        let reason = format!(
            "in llama.cpp all heads of a {} together are as wide as hidden states: `head_dim` × `num_attention_heads` is not \
             `hidden_size`",
            gguf.architecture
        );
        return Err(not_carried(spec, reason));
    }
    if !gguf.shares_keys && attentions(spec).any(|own| own.heads.keys != own.heads.queries) {
        let reason = format!(
            "in llama.cpp every head of a {} has keys of its own: `num_key_value_heads` is not `num_attention_heads`",
            gguf.architecture
        );
        return Err(not_carried(spec, reason));
    }
    let mut keys = Keys::new();
    let mut put = |key: &str, value: Value| keys.push((format!("{}.{key}", gguf.architecture), value));
    let mut notes = Vec::new();
    put("embedding_length", size(spec.hidden_size));
    put("block_count", size(spec.layers.len()));
    put("feed_forward_length", by_layer(widths));
    put("attention.head_count", size(full.heads.queries));
    // A layer without keys is a short convolution; delta nets are listed.
    let keys_of = |layer: &LayerSpec| match layer.short_conv() {
        Some(_) => 0,
        None => Attending::of(layer).map_or(full.heads.keys, |attending| attending.heads.keys),
    };
    put("attention.head_count_kv", by_layer(spec.layers.iter().map(|layer| keys_of(layer)).collect()));
    let mut put_widths = |ending: &str, dim: usize| {
        for of in ["key", "value"] {
            put(&format!("attention.{of}_length{ending}"), size(dim));
        }
    };
    put_widths("", full.heads.dim);
    if sliding.heads.dim != full.heads.dim {
        put_widths("_swa", sliding.heads.dim);
    }
    let epsilon = match spec.final_norm.kind {
        NormKind::Rms(_) => "attention.layer_norm_rms_epsilon",
        NormKind::Layer { .. } => "attention.layer_norm_epsilon",
    };
    put(epsilon, Value::F32(spec.final_norm.kind.epsilon() as f32));
    put("vocab_size", size(spec.vocab_size));
    experts::put(spec, gguf, &mut put)?;
    mixers::put(spec, &mut put)?;
    for (key, value) in gguf.fixed {
        put(
            key,
            match value {
                Fixed::Text(text) => (*text).into(),
                Fixed::Flag(flag) => Value::Bool(*flag),
            },
        );
    }
    scales::put(spec, gguf, &mut put)?;
    scales::put_soft_caps(spec, gguf, &mut put)?;
    if rounds_gelu(spec) {
        notes.push(
            "llama.cpp computes GELU by its approximation with tanh, where this model has the exact one"
                .into(),
        );
    }
    let context = positions::put(spec, gguf, &mut keys, &mut notes)?;
    keys.insert(0, (format!("{}.context_length", gguf.architecture), size(context)));
    Ok((keys, notes))
}

/// Whether the model has an exact GELU, which llama.cpp has for no architecture of these.
fn rounds_gelu(spec: &DecoderSpec) -> bool {
    let exact = |plain: &PlainSpec| plain.function == tune_kernels::activation::Function::Gelu;
    spec.layers.iter().any(|layer| layer.plain().is_some_and(exact))
}

/// Checks that the norms of layers have the epsilon of the last one, or that which the architecture has behind blocks.
fn check_epsilons(spec: &DecoderSpec, gguf: GgufSpec) -> Result<(), Error> {
    let usual = spec.final_norm.kind.epsilon();
    let behind = gguf.post_epsilon.unwrap_or(usual);
    let branches = spec.layers.iter().flat_map(|layer| layer.blocks()).flat_map(|block| &block.branches);
    let mut norms = branches
        .flat_map(|branch| [branch.pre.as_ref().zip(Some(usual)), branch.post.as_ref().zip(Some(behind))])
        .flatten();
    match norms.find(|(norm, expected)| norm.kind.epsilon() != *expected) {
        None => Ok(()),
        Some((norm, expected)) => Err(not_carried(
            spec,
            format!(
                "llama.cpp has an epsilon of {expected:e} in `{}` of a {}, where this model has {:e}",
                norm.path,
                gguf.architecture,
                norm.kind.epsilon()
            ),
        )),
    }
}

/// Checks that the architecture has the model's biases.
fn check_biases(spec: &DecoderSpec, gguf: GgufSpec) -> Result<(), Error> {
    use projection::Role::{Key, Query, QueryKeyValue, Value};
    let is_inner = |role| matches!(role, Query | Key | Value | QueryKeyValue);
    let fits = |projection: &ProjectionSpec| match gguf.biases {
        Biases::None => !projection.bias,
        Biases::Inner => !projection.bias || is_inner(projection.role),
        Biases::Any => true,
        Biases::All => projection.bias,
    };
    match spec.layers.iter().flat_map(|layer| layer.projections()).find(|projection| !fits(projection)) {
        None => Ok(()),
        Some(projection) => Err(not_carried(
            spec,
            format!(
                "llama.cpp has {} bias on `{}` of a {} (keys like `attention_bias` in config.json)",
                if projection.bias { "no" } else { "a" },
                projection.path,
                gguf.architecture
            ),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::names::tensors;
    use super::super::rows::Rows;
    use super::*;
    use crate::model::family::decoder_spec;
    use crate::model::tensors::{Expected, expected};

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
            assert_eq!(sources, expected(&spec));
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
        assert_eq!(sources, expected(&qwen3).len());
        let keys = hyperparameters(&qwen3).unwrap().0;
        assert!(keys.contains(&("qwen3moe.expert_feed_forward_length".into(), Value::U32(16))), "{keys:?}");
        let qwen2 = mixture(json!({"model_type": "qwen2_moe", "shared_expert_intermediate_size": 24}));
        let all = tensors(&qwen2).unwrap();
        let shape = |name: &str| all.iter().find(|tensor| tensor.name == name).unwrap().shape();
        assert_eq!(shape("blk.0.ffn_gate_inp_shexp.weight"), [1, 32]);
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
        assert_eq!((gate.rows.clone(), up.rows.clone()), (Rows::Part(0..40), Rows::Part(40..80)));
        assert_eq!(gate.source, up.source);
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
        let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": false,
            "original_max_position_embeddings": 32}});
        assert_eq!(context(&spec(yarn)), (Value::U32(64), 1));
        let dynamic = json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}});
        assert_eq!(context(&spec(dynamic)), (Value::U32(64), 1));
        let wide = spec(json!({"model_type": "olmo2", "head_dim": 16}));
        let error = hyperparameters(&wide).unwrap_err().to_string();
        assert!(error.contains("olmo2") && error.contains("head_dim"), "{error}");
        let biased = spec(json!({"model_type": "qwen3", "attention_bias": true, "head_dim": 8}));
        let error = hyperparameters(&biased).unwrap_err().to_string();
        assert!(error.contains("qwen3") && error.contains("attention_bias"), "{error}");
        let llama3 = json!({"model_type": "qwen2", "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}});
        let error = hyperparameters(&spec(llama3)).unwrap_err().to_string();
        assert!(error.contains("llama3"), "{error}");
    }
}
