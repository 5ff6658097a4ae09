//! Seed-OSS: Llama with biases on queries, keys and values. Defaults: `SeedOssConfig`.

use std::sync::Arc;

use serde_json::json;

use super::Declared;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs};
use crate::model::parts::{LayerSpec, pre};

pub(super) const SEED_OSS: Declared =
    Declared { model_type: "seed_oss", architecture: "SeedOssForCausalLM", models: "Seed-OSS", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("pretraining_tp", &[json!(1)])?;
    // Dropout of pretraining, which frozen layers go without.
    config.number("residual_dropout")?;
    let defaults = Defaults {
        layers: 64,
        attention_heads: 80,
        vocab_size: 155_136,
        intermediate_size: 27_648,
        key_value_heads: Some(8),
        head_dim: Some(128),
        max_position_embeddings: 524_288,
        drops_attention: true,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let bias = config.flag("attention_bias")?.unwrap_or(true);
    let output_bias = config.flag("attention_out_bias")?.unwrap_or(false);
    let gated = shared.gated("mlp").biased(config.flag("mlp_bias")?.unwrap_or(false));
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), shared.attention().biased(bias, output_bias)),
        pre(shared.norm("post_attention_layernorm", "post_attention_norm"), gated),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let gguf = GgufSpec::of("seed_oss", RotaryPairs::Halves);
    shared.decoder(config, &SEED_OSS, vec![layer; shared.layers], Some(gguf))
}
