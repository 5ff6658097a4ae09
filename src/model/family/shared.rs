//! The keys of config.json that families share, and the parts that they describe.

use std::sync::Arc;

use serde_json::{Value, json};
use tune_kernels::activation::Function;
use tune_kernels::gated::Activation;
use tune_kernels::linear_cross_entropy::Logits;
use tune_kernels::rms_norm::{NormWeight, RmsNorm, Rounding};
use tune_kernels::rope::Pairs;

use super::Declared;
use crate::adapter::projection::Role;
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::{DecoderSpec, Paths};
use crate::model::dtype::FloatDtype;
use crate::model::gguf_spec::GgufSpec;
use crate::model::parts::{
    AttentionSpec, GatedInner, GatedSpec, HeadNorms, Heads, Inner, LayerSpec, NormKind, NormSpec, PlainSpec,
    ProjectionSpec,
};
use crate::model::rotary::{RotarySpec, Rules};

/// Keys that have other names in some families.
pub(super) struct Keys {
    pub(super) hidden: &'static str,
    pub(super) intermediate: &'static str,
    pub(super) layers: &'static str,
    pub(super) heads: &'static str,
    pub(super) positions: &'static str,
}

impl Keys {
    /// Those of Llama.
    pub(super) const LLAMA: Self = Self {
        hidden: "hidden_size",
        intermediate: "intermediate_size",
        layers: "num_hidden_layers",
        heads: "num_attention_heads",
        positions: "max_position_embeddings",
    };
}

/// The key of the activation, and the one that a family computes.
pub(super) struct HiddenActivation {
    pub(super) key: &'static str,
    pub(super) words: &'static [&'static str],
    pub(super) activation: Activation,
}

/// What a family computes, and its values for keys that are absent.
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) attention_heads: usize,
    pub(super) intermediate_size: usize,
    /// `None`: as many as attention heads.
    pub(super) key_value_heads: Option<usize>,
    /// `None`: hidden_size / num_attention_heads.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) rope_theta: f64,
    pub(super) tied: bool,
    /// Beginnings of what `auto_map` may name: modelling code that was published with the models before transformers had
    /// it.
    pub(super) published_code: &'static [&'static str],
    /// Whether files of the family name a dropout of attention, which frozen layers go without.
    pub(super) drops_attention: bool,
    pub(super) activation: HiddenActivation,
    /// Epsilon of norms.
    pub(super) epsilon: f64,
    /// Where norms round.
    pub(super) rounding: Rounding,
    /// How their weights enter.
    pub(super) norm_weight: NormWeight,
    /// Norms also subtract the mean; the key of their epsilon, and whether they have biases.
    pub(super) layer_norm: Option<(&'static str, bool)>,
    pub(super) keys: Keys,
    /// Whether its experts may be in MXFP4.
    pub(super) mxfp4: bool,
}

impl Defaults {
    /// Those of Llama, which most families took over.
    pub(super) const LLAMA: Self = Self {
        vocab_size: 32_000,
        hidden_size: 4096,
        layers: 32,
        attention_heads: 32,
        intermediate_size: 11_008,
        key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        rope_theta: 10_000.0,
        tied: false,
        published_code: &[],
        drops_attention: false,
        activation: HiddenActivation {
            key: "hidden_act",
            words: &["silu", "swish"],
            activation: Activation::Silu,
        },
        epsilon: 1e-6,
        rounding: Rounding::BeforeWeight,
        norm_weight: NormWeight::Plain,
        layer_norm: None,
        keys: Keys::LLAMA,
        mxfp4: false,
    };
}

impl Defaults {
    /// Whether `auto_map` is absent, or names nothing but code that transformers has too.
    fn knows_code(&self, auto_map: Option<&Value>) -> bool {
        let known = |name: &Value| {
            let name = name.as_str().unwrap_or_default();
            self.published_code.iter().any(|known| name.starts_with(known))
        };
        match auto_map {
            None => true,
            Some(Value::Object(classes)) => classes.values().all(known),
            Some(_) => false,
        }
    }
}

/// Values that every family reads under the same key.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) vocab_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) heads: Heads,
    max_position_embeddings: usize,
    rope_theta: f64,
    pub(super) activation: Activation,
    pub(super) norm: NormKind,
    pub(super) tied: bool,
    dtype: Option<FloatDtype>,
}

impl Shared {
    /// Reads the shared keys and proves that sizes are consistent and small enough for arithmetic on them not to
    /// overflow.
    pub(super) fn read(config: &ConfigReader<'_>, defaults: &Defaults) -> Result<Self, Error> {
        let HiddenActivation { key, words, activation } = defaults.activation;
        let words: Vec<Value> = words.iter().map(|word| json!(word)).collect();
        config.must_be(key, &words)?;
        match defaults.drops_attention {
            true => _ = config.number("attention_dropout")?,
            false => config.must_be("attention_dropout", &[json!(0)])?,
        }
        config.must_be("is_encoder_decoder", &[json!(false)])?;
        config.must_be("is_decoder", &[json!(false), json!(true)])?;
        config.must_be("add_cross_attention", &[json!(false)])?;
        config.must_be("tie_encoder_decoder", &[json!(false), json!(true)])?;
        config.must_be("pruned_heads", &[json!({})])?;
        if !defaults.knows_code(config.get("auto_map")) {
            return Err(config.fail(
                "auto_map",
                "names modelling code of its own, which is not run; if the model is a plain one, leave the key out: \
                 `ignore_config_keys = [\"auto_map\"]` in `[model]`",
            ));
        }
        check_quantization(config, defaults.mxfp4)?;
        let size = |key: &str, default: usize| Ok::<_, Error>(config.size(key)?.unwrap_or(default));
        let vocab_size = plausible_size("vocab_size", size("vocab_size", defaults.vocab_size)?)?;
        let keys = &defaults.keys;
        let hidden_size = plausible_size(keys.hidden, size(keys.hidden, defaults.hidden_size)?)?;
        let intermediate_size =
            plausible_size(keys.intermediate, size(keys.intermediate, defaults.intermediate_size)?)?;
        let layers = plausible_count(keys.layers, size(keys.layers, defaults.layers)?)?;
        let max_position_embeddings = size(keys.positions, defaults.max_position_embeddings)?;
        let norm = match defaults.layer_norm {
            Some((key, bias)) => {
                NormKind::Layer { epsilon: config.positive(key)?.unwrap_or(defaults.epsilon), bias }
            }
            None => NormKind::Rms(RmsNorm {
                epsilon: config.positive("rms_norm_eps")?.unwrap_or(defaults.epsilon),
                rounding: defaults.rounding,
                weight: defaults.norm_weight,
            }),
        };
        Ok(Self {
            hidden_size,
            layers,
            vocab_size,
            intermediate_size,
            heads: heads(config, defaults, hidden_size)?,
            max_position_embeddings: plausible_size(keys.positions, max_position_embeddings)?,
            rope_theta: defaults.rope_theta,
            activation,
            norm,
            tied: config.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
            dtype: dtype(config)?,
        })
    }

    /// The same with other heads, where those differ by layer.
    pub(super) fn with_heads(&self, heads: Heads) -> Self {
        Self { heads, ..self.clone() }
    }

    /// The same with feed-forward blocks of another width.
    pub(super) fn with_intermediate(&self, intermediate_size: usize) -> Self {
        Self { intermediate_size, ..self.clone() }
    }

    /// A norm of the hidden state, by its path in a layer and its name in GGUF files.
    pub(super) fn norm(&self, path: &'static str, gguf: &'static str) -> NormSpec {
        NormSpec { path, gguf, width: self.hidden_size, kind: self.norm, place: 0 }
    }

    /// Attention over all keys, with separate projections, no biases and no norms over heads.
    pub(super) fn attention(&self) -> AttentionSpec {
        self.attention_at("self_attn", "o_proj")
    }

    /// The same under `module`, with an output projection of another name.
    pub(super) fn attention_at(&self, module: &str, output: &str) -> AttentionSpec {
        let (heads, hidden) = (self.heads, self.hidden_size);
        let [queries, keys, values] = heads.widths();
        let projection =
            |name: &str, shape, role| ProjectionSpec::new(format!("{module}.{name}"), shape, role);
        AttentionSpec {
            heads,
            inner: Inner::Separate {
                query: projection("q_proj", [queries, hidden], Role::Query),
                key: projection("k_proj", [keys, hidden], Role::Key),
                value: projection("v_proj", [values, hidden], Role::Value),
            },
            head_norms: None,
            value_norm: None,
            bare_head_norm: None,
            output_gate: None,
            gives: None,
            rotary: Some(0),
            output: projection(output, [hidden, queries], Role::Output),
            scaling: 1.0 / (heads.dim as f32).sqrt(),
            window: None,
            soft_cap: None,
            sinks: None,
        }
    }

    /// Norms over single heads, before the rotation.
    pub(super) fn head_norms(&self, query: &'static str, key: &'static str) -> HeadNorms {
        let norm = |path, gguf| NormSpec { width: self.heads.dim, ..self.norm(path, gguf) };
        HeadNorms { query: norm(query, "attn_q_norm"), key: norm(key, "attn_k_norm"), follow_rotation: false }
    }

    /// Norms over all heads of a token, before the rotation.
    pub(super) fn whole_norms(&self, query: &'static str, key: &'static str) -> HeadNorms {
        let [queries, keys, _] = self.heads.widths();
        let mut norms = self.head_norms(query, key);
        (norms.query.width, norms.key.width) = (queries, keys);
        norms
    }

    /// One projection to queries, keys and values.
    pub(super) fn fused_attention(&self, path: &str) -> AttentionSpec {
        let shape = [self.heads.widths().iter().sum(), self.hidden_size];
        let all = ProjectionSpec::new(path.into(), shape, Role::QueryKeyValue);
        AttentionSpec { inner: Inner::Fused(all), ..self.attention() }
    }

    /// A gated feed-forward block with one projection to gate and up.
    pub(super) fn fused_gated(&self, both: &str, down: &str, intermediate: usize) -> GatedSpec {
        let hidden = self.hidden_size;
        let both = ProjectionSpec::new(both.into(), [2 * intermediate, hidden], Role::GateUp);
        GatedSpec {
            inner: GatedInner::Fused(both),
            activation: self.activation,
            down: ProjectionSpec::new(down.into(), [hidden, intermediate], Role::Down),
        }
    }

    /// A feed-forward block without a gate, with biases or without.
    pub(super) fn plain(&self, up: &str, down: &str, function: Function, bias: bool) -> PlainSpec {
        let (hidden, intermediate) = (self.hidden_size, self.intermediate_size);
        let up = ProjectionSpec::new(up.into(), [intermediate, hidden], Role::Up);
        let down = ProjectionSpec::new(down.into(), [hidden, intermediate], Role::Down);
        PlainSpec { up, function, down }.biased(bias)
    }

    /// What this family fixes about rotary positions: the whole head is rotated, by rope types of every family.
    pub(super) fn rotary_rules(&self) -> Rules {
        Rules {
            theta: self.rope_theta,
            head_dim: self.heads.dim,
            max_position_embeddings: self.max_position_embeddings,
            original_max_position_embeddings: None,
            partial: None,
            yarn_is_longrope: false,
            takes_alpha: false,
            pairs: Pairs::Halves,
            theta_key: "rope_theta",
            has_sections: false,
            scales_queries: false,
        }
    }

    /// A gated feed-forward block under `module`, with separate projections and no biases.
    pub(super) fn gated(&self, module: &str) -> GatedSpec {
        self.gated_of(module, self.intermediate_size)
    }

    /// The same of another width.
    pub(super) fn gated_of(&self, module: &str, intermediate: usize) -> GatedSpec {
        self.gated_with(module, intermediate, [Role::Gate, Role::Up, Role::Down])
    }

    /// An expert under `module`.
    pub(super) fn expert(&self, module: &str, intermediate: usize) -> GatedSpec {
        self.gated_with(module, intermediate, [Role::ExpertGate, Role::ExpertUp, Role::ExpertDown])
    }

    fn gated_with(&self, module: &str, intermediate: usize, [gate, up, down]: [Role; 3]) -> GatedSpec {
        let hidden = self.hidden_size;
        let projection =
            |name: &str, shape, role| ProjectionSpec::new(format!("{module}.{name}"), shape, role);
        GatedSpec {
            inner: GatedInner::Separate {
                gate: projection("gate_proj", [intermediate, hidden], gate),
                up: projection("up_proj", [intermediate, hidden], up),
            },
            activation: self.activation,
            down: projection("down_proj", [hidden, intermediate], down),
        }
    }

    /// The decoder of these layers, which share one kind of rotary positions.
    pub(super) fn decoder(
        &self,
        config: &ConfigReader<'_>,
        family: &Declared,
        layers: Vec<Arc<LayerSpec>>,
        gguf: Option<GgufSpec>,
    ) -> Result<DecoderSpec, Error> {
        let rotary = RotarySpec::read(config, &self.rotary_rules())?;
        Ok(self.decoder_with(vec![rotary], family, layers, gguf))
    }

    /// The decoder of these layers and rotary positions.
    pub(super) fn decoder_with(
        &self,
        rotaries: Vec<RotarySpec>,
        family: &Declared,
        layers: Vec<Arc<LayerSpec>>,
        gguf: Option<GgufSpec>,
    ) -> DecoderSpec {
        DecoderSpec {
            family: family.model_type,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            layers,
            rotaries,
            embedding_norm: None,
            embedding_scale: 1.0,
            overflows_f16: false,
            logit_scale: 1.0,
            final_norm: self.norm("model.norm", "output_norm"),
            tied: self.tied,
            logits: Logits::PLAIN,
            head_bias: false,
            max_position_embeddings: self.max_position_embeddings,
            dtype: self.dtype,
            paths: Paths::LLAMA,
            wrapper: None,
            per_layer: None,
            gguf,
        }
    }
}

/// Words of activations without a gate, for [`Defaults::activation`].
pub(super) const UNGATED: HiddenActivation = HiddenActivation {
    key: "hidden_act",
    words: &["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu2", "relu_squared"],
    activation: Activation::Silu,
};

/// The activation that a word of [`UNGATED`] names; `default` where there is none.
pub(super) fn function(config: &ConfigReader<'_>, key: &str, default: Function) -> Result<Function, Error> {
    Ok(match config.text(key)? {
        None => default,
        Some("gelu") => Function::Gelu,
        Some("relu2" | "relu_squared") => Function::ReluSquared,
        Some(_) => Function::GeluTanh,
    })
}

fn heads(config: &ConfigReader<'_>, defaults: &Defaults, hidden_size: usize) -> Result<Heads, Error> {
    let key = defaults.keys.heads;
    let queries = plausible_count(key, config.size(key)?.unwrap_or(defaults.attention_heads))?;
    // An explicit null stands for one key head per query head; an absent key for the default.
    let keys = match config.is_null("num_key_value_heads") {
        true => queries,
        false => config.size("num_key_value_heads")?.or(defaults.key_value_heads).unwrap_or(queries),
    };
    let dim = match config.size("head_dim")?.or(defaults.head_dim) {
        Some(dim) => dim,
        None if hidden_size.is_multiple_of(queries) => hidden_size / queries,
        None => {
            let message = format!("is {queries}, which does not divide hidden_size {hidden_size}");
            return Err(Error::config(key, message));
        }
    };
    let dim = plausible_count("head_dim", dim)?;
    if !queries.is_multiple_of(keys) {
        let message = format!("is {keys}, which does not divide {queries} attention heads");
        return Err(Error::config("num_key_value_heads", message));
    }
    if !dim.is_multiple_of(2) {
        let message = format!("is {dim}; rotary positions pair the halves of a head, so it has to be even");
        return Err(Error::config("head_dim", message));
    }
    Ok(Heads { queries, keys, dim })
}

/// Refuses a size that would overflow arithmetic on it.
pub(super) fn plausible_size(key: &str, size: usize) -> Result<usize, Error> {
    // Far above any real model; keeps every product of two within 2^56.
    const LIMIT: usize = 1 << 28;
    match size {
        0..=LIMIT => Ok(size),
        _ => Err(Error::config(key, format!("is {size}; sizes above {LIMIT} are not plausible"))),
    }
}

/// Refuses a count for which things would be allocated that no model has.
pub(super) fn plausible_count(key: &str, count: usize) -> Result<usize, Error> {
    const LIMIT: usize = 1 << 14;
    match count {
        0..=LIMIT => Ok(count),
        _ => Err(Error::config(key, format!("is {count}; more than {LIMIT} is not plausible"))),
    }
}

/// `dtype` (transformers 5), else `torch_dtype`.
fn dtype(config: &ConfigReader<'_>) -> Result<Option<FloatDtype>, Error> {
    let old = config.text("torch_dtype")?;
    let (key, name) = match config.text("dtype")? {
        Some(name) => ("dtype", Some(name)),
        None => ("torch_dtype", old),
    };
    match name.map(|name| name.trim_start_matches("torch.")) {
        None | Some("auto") => Ok(None),
        Some("float32" | "float") => Ok(Some(FloatDtype::F32)),
        Some("bfloat16") => Ok(Some(FloatDtype::Bf16)),
        Some("float16" | "half") => Ok(Some(FloatDtype::F16)),
        Some(other) => {
            Err(config.fail(key, format!("is {other:?}; implemented are float32, bfloat16 and float16")))
        }
    }
}

/// Quantization by bitsandbytes and 8-bit floats with scales can be read. Whether a tensor is quantized, and how, the
/// tensor itself says.
fn check_quantization(config: &ConfigReader<'_>, mxfp4: bool) -> Result<(), Error> {
    let Some(quantization) = config.object("quantization_config")? else { return Ok(()) };
    let method = quantization.text("quant_method")?;
    let readable = match method {
        Some("bitsandbytes" | "fp8") => true,
        Some("mxfp4") => mxfp4,
        Some("compressed-tensors") => quantization.text("format")? == Some("float-quantized"),
        Some("modelopt") => quantization.text("quant_algo")? == Some("FP8"),
        Some(_) => false,
        // Written before the key existed.
        None => quantization.get("load_in_4bit").is_some() || quantization.get("load_in_8bit").is_some(),
    };
    match readable {
        true => Ok(()),
        false => Err(quantization.fail(
            "quant_method",
            format!(
                "is {}; checkpoints of that kind cannot be trained on: take the unquantized model, one that bitsandbytes \
                 quantized to 4 bits, or one in 8-bit floats with scales (FP8)",
                method.map_or("missing".to_owned(), |method| format!("{method:?}"))
            ),
        )),
    }
}
