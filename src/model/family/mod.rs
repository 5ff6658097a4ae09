//! From config.json to a decoder: which family it is, and the keys that families share.
//!
//! One file per family. Defaults of absent keys are those of the family's configuration class in transformers.
//! Refuses to know weights and arithmetic.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use serde_json::{Value, json};

use super::Error;
use super::config::ConfigReader;
use super::decoder_spec::{Biases, DecoderSpec, FloatDtype, TensorNames, plausible_count};
use super::rotary::RotarySpec;

/// The families that can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, 3, 3.1, 3.2, SmolLM2 and whatever else calls itself Llama.
    Llama,
    /// Mistral 7B.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The family as `model_type` spells it.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The causal language model as `architectures` spells it.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    fn of(config: &ConfigReader<'_>) -> Result<Self, Error> {
        let supported = || Self::ALL.map(Self::architecture).join(", ");
        let unsupported = |found: String| Error::UnsupportedArchitecture { found, supported: supported() };
        let architectures = config.texts("architectures")?.unwrap_or_default();
        let family = match config.text("model_type")? {
            Some(name) => {
                Self::ALL.into_iter().find(|family| family.model_type() == name).ok_or_else(|| {
                    let also = architectures.first().map(|name| format!(" ({name})")).unwrap_or_default();
                    unsupported(format!("model type {name:?}{also}"))
                })?
            }
            None => Self::ALL
                .into_iter()
                .find(|family| architectures.contains(&family.architecture()))
                .ok_or_else(|| {
                    unsupported("neither a `model_type` nor `architectures` that is known".into())
                })?,
        };
        match architectures.is_empty() || architectures.contains(&family.architecture()) {
            true => Ok(family),
            false => Err(unsupported(format!("architecture {}", architectures.join(", ")))),
        }
    }
}

/// Reads config.json.
///
/// # Errors
/// An architecture that is not supported; a value that is missing, misshapen or not implemented; a key that is
/// not understood.
pub fn decoder_spec(config: &Value) -> Result<DecoderSpec, Error> {
    let config = ConfigReader::new(config)?;
    let family = Family::of(&config)?;
    let shared = Shared::read(&config)?;
    // Lists with an entry for each layer are made below.
    plausible_count("num_hidden_layers", shared.layers)?;
    let spec = match family {
        Family::Llama => llama::decoder_spec(&config, shared),
        Family::Mistral => mistral::decoder_spec(&config, shared),
        Family::Qwen2 => qwen2::decoder_spec(&config, shared),
        Family::Qwen3 => qwen3::decoder_spec(&config, shared),
    }?;
    config.finish()?;
    spec.check()?;
    Ok(spec)
}

/// Values that every family reads under the same key.
struct Shared {
    vocab_size: Option<usize>,
    hidden_size: usize,
    intermediate_size: Option<usize>,
    layers: usize,
    attention_heads: usize,
    key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_epsilon: f64,
    tied: bool,
    dtype: Option<FloatDtype>,
}

impl Shared {
    fn read(config: &ConfigReader<'_>) -> Result<Self, Error> {
        config.must_be("hidden_act", &[json!("silu"), json!("swish")])?;
        config.must_be("attention_dropout", &[json!(0)])?;
        config.must_be("is_encoder_decoder", &[json!(false)])?;
        config.must_be("is_decoder", &[json!(false), json!(true)])?;
        config.must_be("add_cross_attention", &[json!(false)])?;
        config.must_be("tie_encoder_decoder", &[json!(false), json!(true)])?;
        config.must_be("pruned_heads", &[json!({})])?;
        if config.get("auto_map").is_some() {
            return Err(config.fail(
                "auto_map",
                "names modelling code of its own, which is not run; remove the key if the model is a plain one",
            ));
        }
        check_quantization(config)?;
        Ok(Self {
            vocab_size: config.size("vocab_size")?,
            hidden_size: config.size("hidden_size")?.unwrap_or(4096),
            intermediate_size: config.size("intermediate_size")?,
            layers: config.size("num_hidden_layers")?.unwrap_or(32),
            attention_heads: config.size("num_attention_heads")?.unwrap_or(32),
            key_value_heads: config.size("num_key_value_heads")?,
            head_dim: config.size("head_dim")?,
            max_position_embeddings: config.size("max_position_embeddings")?,
            rms_norm_epsilon: config.positive("rms_norm_eps")?.unwrap_or(1e-6),
            tied: config.flag("tie_word_embeddings")?.unwrap_or(false),
            dtype: dtype(config)?,
        })
    }

    /// hidden_size / num_attention_heads, for a config.json without `head_dim`.
    fn divided_head_dim(&self) -> Result<usize, Error> {
        match self.hidden_size.is_multiple_of(self.attention_heads) {
            true => Ok(self.hidden_size / self.attention_heads),
            false => Err(Error::config(
                "num_attention_heads",
                format!(
                    "is {}, which does not divide hidden_size {}",
                    self.attention_heads, self.hidden_size
                ),
            )),
        }
    }

    /// The spec of a family, from what it adds to the shared keys.
    fn into_spec(self, config: &ConfigReader<'_>, family: Family, own: Own) -> Result<DecoderSpec, Error> {
        let max_position_embeddings = self.max_position_embeddings.unwrap_or(own.max_position_embeddings);
        Ok(DecoderSpec {
            family: family.model_type(),
            vocab_size: self.vocab_size.unwrap_or(own.vocab_size),
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size.unwrap_or(own.intermediate_size),
            layers: self.layers,
            attention_heads: self.attention_heads,
            key_value_heads: own.key_value_heads,
            head_dim: own.head_dim,
            rms_norm_epsilon: self.rms_norm_epsilon,
            rotary: RotarySpec::read(config, own.head_dim, max_position_embeddings)?,
            sliding_window: own.sliding_window,
            query_key_norm: own.query_key_norm,
            biases: own.biases,
            tied: self.tied,
            max_position_embeddings,
            dtype: self.dtype,
            names: TensorNames::LLAMA,
        })
    }
}

/// What a family adds to the shared keys, and its defaults for some of them.
struct Own {
    vocab_size: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    key_value_heads: usize,
    head_dim: usize,
    sliding_window: Vec<Option<usize>>,
    query_key_norm: bool,
    biases: Biases,
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

/// Only bitsandbytes' quantization can be read. Whether a tensor is quantized, and how, the tensor itself says.
fn check_quantization(config: &ConfigReader<'_>) -> Result<(), Error> {
    let Some(quantization) = config.object("quantization_config")? else { return Ok(()) };
    let method = quantization.text("quant_method")?;
    let bitsandbytes = match method {
        Some(method) => method == "bitsandbytes",
        // Written before the key existed.
        None => quantization.get("load_in_4bit").is_some() || quantization.get("load_in_8bit").is_some(),
    };
    match bitsandbytes {
        true => Ok(()),
        false => Err(quantization.fail(
            "quant_method",
            format!(
                "is {}; checkpoints of that kind cannot be trained on: take the unquantized model, or one that \
                 bitsandbytes quantized to 4 bits",
                method.map_or("missing".to_owned(), |method| format!("{method:?}"))
            ),
        )),
    }
}

/// Per-layer windows of the families that have `layer_types`: from that list, or from `max_window_layers`.
fn windows_by_layer(
    config: &ConfigReader<'_>,
    layers: usize,
    default_window: usize,
    default_max_window_layers: usize,
) -> Result<Vec<Option<usize>>, Error> {
    let used = config.flag("use_sliding_window")?.unwrap_or(false);
    // An explicit null stands for no window; an absent key for the default.
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(config.size("sliding_window")?.unwrap_or(default_window)),
    };
    let window = window.filter(|_| used);
    let first = config.count("max_window_layers")?.unwrap_or(default_max_window_layers);
    match layer_types(config, layers)? {
        None => Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect()),
        Some(slides) => slides
            .into_iter()
            .map(|slides| match (slides, window) {
                (false, _) => Ok(None),
                (true, Some(window)) => Ok(Some(window)),
                (true, None) => Err(config.fail(
                    "layer_types",
                    "has sliding layers, but `use_sliding_window` is off or `sliding_window` is null",
                )),
            })
            .collect(),
    }
}

/// Per layer: whether its attention slides.
fn layer_types(config: &ConfigReader<'_>, layers: usize) -> Result<Option<Vec<bool>>, Error> {
    let Some(types) = config.texts("layer_types")? else { return Ok(None) };
    if types.len() != layers {
        return Err(config.fail("layer_types", format!("has {} entries for {layers} layers", types.len())));
    }
    types
        .into_iter()
        .map(|name| match name {
            "full_attention" => Ok(false),
            "sliding_attention" => Ok(true),
            other => Err(config.fail(
                "layer_types",
                format!("has {other:?}; implemented are \"full_attention\" and \"sliding_attention\""),
            )),
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

/// Holds `layer_types` to one kind in all layers, for families whose code does not look at it.
fn uniform_layer_types(config: &ConfigReader<'_>, layers: usize, slides: bool) -> Result<(), Error> {
    match layer_types(config, layers)? {
        Some(types) if types.iter().any(|&layer| layer != slides) => Err(config.fail(
            "layer_types",
            "contradicts `sliding_window`: layers of different kinds are not part of this family",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
