//! Gemma 1: Llama with norms of `1 + w`, a GELU gate, embeddings times √hidden. Its successors share these. Defaults:
//! `GemmaConfig`.

use std::sync::Arc;

use serde_json::json;
use tune_kernels::gated::Activation;
use tune_kernels::rms_norm::{NormWeight, Rounding};

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, HiddenActivation, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs, Scales};
use crate::model::parts::{LayerSpec, pre};

pub(super) const GEMMA: Declared =
    Declared { model_type: "gemma", architecture: "GemmaForCausalLM", models: "Gemma", read };

/// What all Gemmas share.
pub(super) const DEFAULTS: Defaults = Defaults {
    hidden_size: 3072,
    layers: 28,
    attention_heads: 16,
    vocab_size: 256_000,
    intermediate_size: 24_576,
    key_value_heads: Some(16),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    tied: true,
    activation: HiddenActivation {
        key: "hidden_act",
        // The first files say `gelu` and mean its approximation.
        words: &["gelu_pytorch_tanh", "gelu"],
        activation: Activation::GeluTanh,
    },
    rounding: Rounding::Last,
    norm_weight: NormWeight::OnePlus,
    ..Defaults::LLAMA
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    check(config)?;
    let shared = Shared::read(config, &DEFAULTS)?;
    uniform_layer_types(config, shared.layers, false)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), shared.attention().biased(bias, bias)),
        pre(shared.norm("post_attention_layernorm", "ffn_norm"), shared.gated("mlp")),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let gguf = GgufSpec { scales: Scales::Gemma { wide: 0 }, ..GgufSpec::of("gemma", RotaryPairs::Halves) };
    Ok(scaled(shared.decoder(config, &GEMMA, vec![layer; shared.layers], Some(gguf))?))
}

/// Keys that every Gemma has.
pub(super) fn check(config: &ConfigReader<'_>) -> Result<(), Error> {
    config.must_be("hidden_activation", &[json!("gelu_pytorch_tanh"), json!("gelu")])?;
    config.must_be("use_bidirectional_attention", &[json!(false)])?;
    config.must_be("mlp_bias", &[json!(false)])?;
    // Which kind of cache transformers generates with.
    config.get("cache_implementation");
    Ok(())
}

/// The decoder with embeddings times √hidden. Activations of released models exceed what f16 holds.
pub(super) fn scaled(spec: DecoderSpec) -> DecoderSpec {
    DecoderSpec { embedding_scale: (spec.hidden_size as f32).sqrt(), overflows_f16: true, ..spec }
}
