//! ERNIE 4.5, dense: Llama that rotates neighbouring dimensions. Defaults: `Ernie4_5Config`.

use std::sync::Arc;

use serde_json::json;
use tune_kernels::rope::Pairs;

use super::Declared;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs};
use crate::model::parts::{LayerSpec, pre};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const ERNIE4_5: Declared = Declared {
    model_type: "ernie4_5",
    architecture: "Ernie4_5ForCausalLM",
    models: "ERNIE 4.5 (dense)",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("compression_ratio", &[json!(1.0)])?;
    let defaults = Defaults {
        hidden_size: 1024,
        layers: 18,
        attention_heads: 16,
        vocab_size: 103_424,
        intermediate_size: 3072,
        key_value_heads: Some(2),
        head_dim: Some(128),
        max_position_embeddings: 131_072,
        rope_theta: 500_000.0,
        tied: true,
        epsilon: 1e-5,
        published_code: &["configuration_ernie4_5.", "modeling_ernie4_5."],
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let bias = config.flag("use_bias")?.unwrap_or(false);
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), shared.attention().biased(bias, bias)),
        pre(shared.norm("post_attention_layernorm", "ffn_norm"), shared.gated("mlp").biased(bias)),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let rotary = RotarySpec::read(config, &Rules { pairs: Pairs::Neighbours, ..shared.rotary_rules() })?;
    let gguf = GgufSpec::of("ernie4_5", RotaryPairs::Neighbours);
    Ok(shared.decoder_with(vec![rotary], &ERNIE4_5, vec![layer; shared.layers], Some(gguf)))
}
