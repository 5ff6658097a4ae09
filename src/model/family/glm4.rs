//! GLM-4-0414 and GLM-Z1: norms on both sides of every body, one projection to gate and up, neighbouring dimensions of half of
//! every head rotated. Defaults: `Glm4Config`.

use std::sync::Arc;

use serde_json::json;
use tune_kernels::rope::Pairs;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs};
use crate::model::parts::{LayerSpec, sandwich};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const GLM4: Declared =
    Declared { model_type: "glm4", architecture: "Glm4ForCausalLM", models: "GLM-4-0414, GLM-Z1", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("mlp_bias", &[json!(false)])?;
    let defaults = Defaults {
        layers: 40,
        vocab_size: 151_552,
        intermediate_size: 13_696,
        key_value_heads: Some(2),
        head_dim: Some(128),
        max_position_embeddings: 131_072,
        epsilon: 1.5625e-7,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    uniform_layer_types(config, shared.layers, false)?;
    let bias = config.flag("attention_bias")?.unwrap_or(true);
    let norm = |path, gguf| shared.norm(path, gguf);
    let gated = shared.fused_gated("mlp.gate_up_proj", "mlp.down_proj", shared.intermediate_size);
    let blocks = [
        sandwich(
            norm("input_layernorm", "attn_norm"),
            shared.attention().biased(bias, false),
            norm("post_self_attn_layernorm", "post_attention_norm"),
        ),
        sandwich(
            norm("post_attention_layernorm", "ffn_norm"),
            gated,
            norm("post_mlp_layernorm", "post_ffw_norm"),
        ),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let rules = Rules { partial: Some(0.5), pairs: Pairs::Neighbours, ..shared.rotary_rules() };
    let rotary = RotarySpec::read(config, &rules)?;
    let gguf = GgufSpec::of("glm4", RotaryPairs::Neighbours);
    Ok(shared.decoder_with(vec![rotary], &GLM4, vec![layer; shared.layers], Some(gguf)))
}
