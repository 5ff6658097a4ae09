//! Mixtral: Mistral with experts, whose weights add up to 1. Defaults: `MixtralConfig`.

use std::sync::Arc;

use serde_json::json;

use super::Declared;
use super::experts::{Experts, mixture};
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::GgufSpec;
use crate::model::parts::{AttentionSpec, LayerSpec, pre};

pub(super) const MIXTRAL: Declared = Declared {
    model_type: "mixtral",
    architecture: "MixtralForCausalLM",
    models: "Mixtral 8x7B, 8x22B",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("attention_bias", &[json!(false)])?;
    // Noise on what the router is given in training.
    config.must_be("router_jitter_noise", &[json!(0)])?;
    let defaults = Defaults {
        intermediate_size: 14_336,
        key_value_heads: Some(8),
        max_position_embeddings: 4096 * 32,
        rope_theta: 1e6,
        epsilon: 1e-5,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let window = config.size("sliding_window")?;
    uniform_layer_types(config, shared.layers, window.is_some())?;
    let experts = Experts { counts: [8, 2], width: shared.intermediate_size, normalised: Some(true) };
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), AttentionSpec { window, ..shared.attention() }),
        pre(shared.norm("post_attention_layernorm", "ffn_norm"), mixture(config, &shared, &experts)?),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let gguf = GgufSpec::LLAMA.with_experts(true);
    shared.decoder(config, &MIXTRAL, vec![layer; shared.layers], Some(gguf))
}
