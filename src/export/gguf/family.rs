//! A decoder in llama.cpp's terms: architecture, hyperparameters, tensor names.
//!
//! What each architecture computes is declared by its family (`model::gguf_spec`). A feature that llama.cpp lacks is an
//! error; for sliding windows and dynamic scaling the context length is limited to where they have no effect, with a
//! note.

use super::super::Error;
use super::container::{Keys, Value};
use super::rows::Rows;
use super::{experts, mixture, positions, scales};
use crate::adapter::projection;
use crate::model::DecoderSpec;
use crate::model::gguf_spec::{Biases, Fixed, GgufSpec, Scales};
use crate::model::parts::{
    AttentionSpec, LayerSpec, LayerTensor, NormKind, NormSpec, PlainSpec, ProjectionSpec,
};
use crate::model::tensors::{self, Expected};

/// The role of a tensor, as far as its type depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A norm or a bias.
    Vector,
    /// The embedding table.
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
    /// Whether 1 is added to every number: a norm that the family multiplies by 1 + w.
    pub plus_one: bool,
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
        if let (Rows::Part(rows), Some(first)) = (&self.rows, shape.first_mut()) {
            *first = rows.len();
        }
        shape
    }

    /// Its numbers, from those of a tensor of the checkpoint.
    pub fn arranged(&self, values: Vec<f32>) -> Vec<f32> {
        let mut values = self.rows.arranged(values, self.columns());
        if self.plus_one {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        values
    }

    /// Length of a row: 1 for a vector.
    pub fn columns(&self) -> usize {
        if self.source.shape.len() > 1 { self.source.shape[1] } else { 1 }
    }

    /// Which row of a tensor of the checkpoint each of its rows is. Row numbers are exact in f32 up to 2^24.
    pub fn source_rows(&self) -> Vec<usize> {
        let all = self.source.shape.first().copied().unwrap_or(1);
        let rows = self.rows.arranged((0..all).map(|row| row as f32).collect(), 1);
        rows.into_iter().map(|row| row as usize).collect()
    }
}

/// How llama.cpp takes the family.
///
/// # Errors
/// It does not.
pub(super) fn declared(spec: &DecoderSpec) -> Result<GgufSpec, Error> {
    spec.gguf.ok_or_else(|| Error::NotInGguf {
        subject: format!("the family {}", spec.family),
        reason: "llama.cpp does not compute it, or this version does not know how".into(),
    })
}

pub(super) fn not_carried(spec: &DecoderSpec, reason: impl Into<String>) -> Error {
    Error::NotInGguf { subject: format!("this {}", spec.family), reason: reason.into() }
}

pub(super) fn attentions(spec: &DecoderSpec) -> impl Iterator<Item = &AttentionSpec> {
    spec.layers.iter().filter_map(|layer| layer.attention())
}

fn size(size: usize) -> Value {
    Value::U32(u32::try_from(size).unwrap_or(u32::MAX))
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
    let intermediate = spec.layers.first().and_then(|layer| width(layer)).ok_or_else(no_layers)?;
    let first = attentions(spec).next().ok_or_else(no_layers)?;
    let full = attentions(spec).find(|attention| attention.window.is_none()).unwrap_or(first);
    let sliding = attentions(spec).find(|attention| attention.window.is_some()).unwrap_or(full);
    check_biases(spec, gguf)?;
    let mut keys = Keys::new();
    let mut put = |key: &str, value: Value| keys.push((format!("{}.{key}", gguf.architecture), value));
    let mut notes = Vec::new();
    put("embedding_length", size(spec.hidden_size));
    put("block_count", size(spec.layers.len()));
    put("feed_forward_length", size(intermediate));
    put("attention.head_count", size(full.heads.queries));
    put(
        "attention.head_count_kv",
        match full.heads.keys == sliding.heads.keys {
            true => size(full.heads.keys),
            false => Value::I32s(attentions(spec).map(|attention| attention.heads.keys as i32).collect()),
        },
    );
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
    for (key, value) in gguf.fixed {
        put(
            key,
            match value {
                Fixed::Text(text) => (*text).into(),
                Fixed::Number(number) => Value::U32(*number),
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

/// Every tensor of the decoder, in the order of a forward pass.
///
/// # Errors
/// A projection that llama.cpp has under no name known here.
pub fn tensors(spec: &DecoderSpec) -> Result<Vec<Tensor>, Error> {
    let named = |name: &str, role: Role, rows: Rows, source: Expected| {
        let ending = if source.name.ends_with(".bias") { "bias" } else { "weight" };
        let role = if source.shape.len() > 1 { role } else { Role::Vector };
        Tensor { name: format!("{name}.{ending}"), source, role, rows, plus_one: false, stack: Vec::new() }
    };
    let plain = |name: &str, role: Role, source: Expected| named(name, role, Rows::All, source);
    let table = |path: &str| tensors::table(spec, path);
    let of_norm = |name: &str, norm: &NormSpec, sources: Vec<Expected>| {
        let plus_one = norm.kind.is_one_plus();
        let tensor = |source: Expected| Tensor { plus_one, ..plain(name, Role::Vector, source) };
        sources.into_iter().map(tensor).collect::<Vec<_>>()
    };
    let mut all = vec![plain("token_embd", Role::Embedding, table(spec.paths.embedding))];
    for (layer, layer_spec) in spec.layers.iter().enumerate() {
        for tensor in layer_spec.tensors() {
            let sources = tensors::of_layer(spec, layer, tensor);
            match tensor {
                LayerTensor::Constant(constant) if layer_spec.factor() == Some(constant) => {
                    let name = format!("blk.{layer}.layer_output_scale");
                    all.extend(sources.into_iter().map(|source| plain(&name, Role::Vector, source)));
                }
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
                    all.extend(sources.into_iter().map(|source| plain(&name, Role::Vector, flat(source))));
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
                        None => all.extend(sources.into_iter().map(|source| plain(&name, role, source))),
                    }
                }
                LayerTensor::Norm(norm) => {
                    all.extend(of_norm(&format!("blk.{layer}.{}", norm.gguf), norm, sources))
                }
                LayerTensor::Projection(projection) => {
                    let role = projection.role;
                    if let Some(parts) = Rows::apart(spec, role, projection.shape[0]) {
                        for source in sources {
                            for (part, rows) in parts.clone() {
                                all.push(named(
                                    &format!("blk.{layer}.{part}"),
                                    Role::Matrix,
                                    rows,
                                    source.clone(),
                                ));
                            }
                        }
                        continue;
                    }
                    let name = match experts::shared_name(layer_spec, projection) {
                        Some(name) => format!("blk.{layer}.{name}"),
                        None => projection_name(spec, layer, role)?,
                    };
                    let rows = Rows::of(spec, layer, role);
                    let role = match role {
                        projection::Role::Value | projection::Role::QueryKeyValue => Role::Value { layer },
                        projection::Role::Down => Role::Down { layer },
                        _ => Role::Matrix,
                    };
                    all.extend(sources.into_iter().map(|source| named(&name, role, rows.clone(), source)));
                }
            }
        }
    }
    let norm = &spec.final_norm;
    all.extend(of_norm("output_norm", norm, tensors::of_norm(norm, norm.path)));
    if !spec.tied {
        all.push(plain("output", Role::Head, table(spec.paths.head)));
    }
    all.extend(tensors::head_bias(spec).map(|bias| plain("output", Role::Vector, bias)));
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
        projection::Role::MixerGate if spec.layers[layer].attention().is_some() => "attn_gate",
        projection::Role::Mixed
        | projection::Role::MixerGate
        | projection::Role::Write
        | projection::Role::Decay
        | projection::Role::MixerOutput => {
            return Err(not_carried(spec, "recurrent mixers have no place in the file yet"));
        }
        // All experts together.
        projection::Role::ExpertGate => "ffn_gate_exps",
        projection::Role::ExpertUp => "ffn_up_exps",
        projection::Role::ExpertDown => "ffn_down_exps",
        projection::Role::GateUp => "ffn_up",
    };
    Ok(format!("blk.{layer}.{name}"))
}

/// Whether a projection to gate and up is two tensors in the file.
pub(super) fn is_separated(spec: &DecoderSpec, role: projection::Role) -> bool {
    role == projection::Role::GateUp && spec.gguf.is_some_and(|gguf| gguf.separates_gate_and_up)
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
