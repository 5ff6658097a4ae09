//! SmolLM3: Llama whose every fourth layer leaves queries and keys unrotated. Defaults: `SmolLM3Config`.

use super::Declared;
use super::layer_types::{by_kind, layer_types};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs, Unrotated};
use crate::model::parts::{AttentionSpec, LayerSpec, pre};

pub(super) const SMOLLM3: Declared =
    Declared { model_type: "smollm3", architecture: "SmolLM3ForCausalLM", models: "SmolLM3", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let defaults = Defaults {
        hidden_size: 2048,
        layers: 36,
        attention_heads: 16,
        vocab_size: 128_256,
        key_value_heads: Some(4),
        max_position_embeddings: 32_768,
        rope_theta: 2_000_000.0,
        tied: true,
        ..Defaults::LLAMA
    };
    // Left over from the code that it grew from.
    config.ignore(&["max_window_layers", "pretraining_tp"]);
    let shared = Shared::read(config, &defaults)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.flag("mlp_bias")?.unwrap_or(false);
    let rotated = rotated(config, shared.layers)?;
    let used = config.flag("use_sliding_window")?.unwrap_or(false);
    let window = config.size("sliding_window")?.filter(|_| used);
    // Without a list the windows are those of the layers without rotation.
    let slides = layer_types(config, shared.layers)?;
    let slides = slides.unwrap_or_else(|| rotated.iter().map(|rotated| !rotated).collect());
    let kinds: Vec<_> = rotated.into_iter().zip(slides).collect();
    let layers = by_kind(&kinds, |(rotated, slides)| {
        let (rotary, window) = (rotated.then_some(0), window.filter(|_| slides));
        let attention = AttentionSpec { rotary, window, ..shared.attention() }.biased(bias, bias);
        let blocks = [
            pre(shared.norm("input_layernorm", "attn_norm"), attention),
            pre(shared.norm("post_attention_layernorm", "ffn_norm"), shared.gated("mlp").biased(mlp_bias)),
        ];
        LayerSpec::of(shared.hidden_size, blocks)
    });
    let gguf = GgufSpec {
        unrotated: Unrotated::Every(4),
        takes_frequency_divisors: true,
        ..GgufSpec::of("smollm3", RotaryPairs::Neighbours)
    };
    shared.decoder(config, &SMOLLM3, layers, Some(gguf))
}

/// Per layer: whether queries and keys are rotated.
fn rotated(config: &ConfigReader<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    const KEY: &str = "no_rope_layers";
    let interval = config.size("no_rope_layer_interval")?.unwrap_or(4);
    let Some(listed) = config.numbers(KEY)? else {
        return Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    match listed.len() == layers {
        true => Ok(listed.into_iter().map(|rotated| rotated != 0.0).collect()),
        false => Err(config.fail(KEY, format!("has {} entries for {layers} layers", listed.len()))),
    }
}
