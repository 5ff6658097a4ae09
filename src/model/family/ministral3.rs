//! Ministral 3: Llama with YaRN whose queries grow beyond the original length. Defaults: `Ministral3Config`.

use std::sync::Arc;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{Biases, GgufSpec, RotaryPairs};
use crate::model::parts::{AttentionSpec, LayerSpec, pre};
use crate::model::rotary::{QueryScale, RotaryScaling, RotarySpec, Rules};

pub(super) const MINISTRAL3: Declared =
    Declared { model_type: "ministral3", architecture: "Ministral3ForCausalLM", models: "Ministral 3", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let defaults = Defaults {
        layers: 34,
        vocab_size: 131_072,
        intermediate_size: 14_336,
        key_value_heads: Some(8),
        head_dim: Some(128),
        max_position_embeddings: 262_144,
        rope_theta: 1_000_000.0,
        epsilon: 1e-5,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let window = config.size("sliding_window")?;
    uniform_layer_types(config, shared.layers, window.is_some())?;
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), AttentionSpec { window, ..shared.attention() }),
        pre(shared.norm("post_attention_layernorm", "ffn_norm"), shared.gated("mlp")),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let rotary = match config.get("rope_parameters").or(config.get("rope_scaling")) {
        Some(_) => RotarySpec::read(config, &Rules { scales_queries: true, ..shared.rotary_rules() })?,
        None => default_rotary(&RotarySpec::read(config, &shared.rotary_rules())?),
    };
    let gguf = GgufSpec {
        divides_temperature: true,
        biases: Biases::Any,
        takes_frequency_divisors: true,
        ..GgufSpec::of("mistral3", RotaryPairs::Neighbours)
    };
    Ok(shared.decoder_with(vec![rotary], &MINISTRAL3, vec![layer; shared.layers], Some(gguf)))
}

/// Rotary positions where config.json says nothing of them.
fn default_rotary(plain: &RotarySpec) -> RotarySpec {
    let original_max_position_embeddings = 16_384;
    let scaling = RotaryScaling::Yarn {
        factor: 16.0,
        attention_factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position_embeddings,
        truncate: true,
    };
    let query_scale = Some(QueryScale { beta: 0.1, original_max_position_embeddings });
    RotarySpec { scaling, query_scale, ..plain.clone() }
}
