//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: stacked projections, a part of each head rotated, longrope. Defaults: `Phi3Config`.

use std::sync::Arc;

use serde_json::json;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs, Windows};
use crate::model::parts::{AttentionSpec, LayerSpec, pre};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const PHI3: Declared = Declared {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    models: "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    for key in ["resid_pdrop", "embd_pdrop"] {
        config.must_be(key, &[json!(0)])?;
    }
    config.must_be("attention_bias", &[json!(false)])?;
    config.must_be("mlp_bias", &[json!(false)])?;
    config.must_be("lm_head_bias", &[json!(false)])?;
    // Of Phi-4-mini's own code, which computes the same.
    config.ignore(&["full_attn_mod", "interpolate_factor"]);
    let defaults = Defaults {
        hidden_size: 3072,
        vocab_size: 32_064,
        intermediate_size: 8192,
        max_position_embeddings: 4096,
        epsilon: 1e-5,
        published_code: &["configuration_phi3.", "modeling_phi3.", "Xenova/"],
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let window = config.size("sliding_window")?;
    uniform_layer_types(config, shared.layers, window.is_some())?;
    let attention = AttentionSpec { window, ..shared.fused_attention("self_attn.qkv_proj") };
    let gated = shared.fused_gated("mlp.gate_up_proj", "mlp.down_proj", shared.intermediate_size);
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), attention),
        pre(shared.norm("post_attention_layernorm", "ffn_norm"), gated),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let rules = Rules {
        partial: Some(1.0),
        yarn_is_longrope: true,
        // Where the file is silent, this is not the model's own length as elsewhere.
        original_max_position_embeddings: Some(4096),
        ..shared.rotary_rules()
    };
    let rotary = RotarySpec::read(config, &rules)?;
    let gguf = GgufSpec { windows: Windows::Told, ..GgufSpec::of("phi3", RotaryPairs::Halves) };
    Ok(shared.decoder_with(vec![rotary], &PHI3, vec![layer; shared.layers], Some(gguf)))
}
