//! Qwen2 with experts, one of which every token passes behind a gate. Defaults: `Qwen2MoeConfig`.

use serde_json::json;

use super::Declared;
use super::experts::{Experts, mixed_layers, mixed_or_dense, mixture, with_shared};
use super::layer_types::{by_kind, windows_by_layer};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::GgufSpec;
use crate::model::parts::{AttentionSpec, LayerSpec, pre};

pub(super) const QWEN2_MOE: Declared = Declared {
    model_type: "qwen2_moe",
    architecture: "Qwen2MoeForCausalLM",
    models: "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("mlp_bias", &[json!(false)])?;
    let defaults = Defaults {
        vocab_size: 151_936,
        intermediate_size: 5632,
        key_value_heads: Some(16),
        max_position_embeddings: 32_768,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let bias = config.flag("qkv_bias")?.unwrap_or(true);
    let width = config.size("moe_intermediate_size")?.unwrap_or(1408);
    let experts = Experts { counts: [60, 4], width, normalised: None };
    let width = config.size("shared_expert_intermediate_size")?.unwrap_or(5632);
    let mixture = with_shared(mixture(config, &shared, &experts)?, &shared, width);
    let windows = windows_by_layer(config, shared.layers, 4096, 28)?;
    let kinds: Vec<_> = mixed_layers(config, shared.layers)?.into_iter().zip(windows).collect();
    let layers = by_kind(&kinds, |(is_mixed, window)| {
        let attention = AttentionSpec { window, ..shared.attention() }.biased(bias, false);
        let norm = shared.norm("input_layernorm", "attn_norm");
        LayerSpec::of(shared.hidden_size, [pre(norm, attention), mixed_or_dense(&shared, &mixture, is_mixed)])
    });
    let gguf = GgufSpec::filled("qwen2moe").with_experts(false);
    shared.decoder(config, &QWEN2_MOE, layers, Some(gguf))
}
