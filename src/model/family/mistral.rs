//! Mistral 7B: one sliding window for all layers (or none), no biases. Defaults: `MistralConfig`.

use std::sync::Arc;

use serde_json::json;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::GgufSpec;
use crate::model::parts::{AttentionSpec, LayerSpec, pre};

pub(super) const MISTRAL: Declared = Declared {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    models: "Mistral 7B, Nemo, Small 3, Magistral, Devstral",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("attention_bias", &[json!(false)])?;
    config.must_be("mlp_bias", &[json!(false)])?;
    let defaults = Defaults {
        intermediate_size: 14_336,
        key_value_heads: Some(8),
        max_position_embeddings: 4096 * 32,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    // Absent means the default of 4096; null means none.
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(config.size("sliding_window")?.unwrap_or(4096)),
    };
    uniform_layer_types(config, shared.layers, window.is_some())?;
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), AttentionSpec { window, ..shared.attention() }),
        pre(shared.norm("post_attention_layernorm", "ffn_norm"), shared.gated("mlp")),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    shared.decoder(config, &MISTRAL, vec![layer; shared.layers], Some(GgufSpec::LLAMA))
}
