//! Qwen3 with experts: a norm on each head's queries and keys, mixtures in most layers or in all. Defaults:
//! `Qwen3MoeConfig`.

use serde_json::json;

use super::Declared;
use super::experts::{Experts, mixed_layers, mixed_or_dense, mixture};
use super::layer_types::by_kind;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs};
use crate::model::parts::{AttentionSpec, LayerSpec, pre};

pub(super) const QWEN3_MOE: Declared = Declared {
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    models: "Qwen3-30B-A3B, Qwen3-Coder-30B-A3B and the like",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("mlp_bias", &[json!(false)])?;
    config.must_be("use_sliding_window", &[json!(false)])?;
    // Without effect where windows are off.
    config.ignore(&["sliding_window", "max_window_layers"]);
    let defaults = Defaults {
        vocab_size: 151_936,
        intermediate_size: 6144,
        key_value_heads: Some(4),
        max_position_embeddings: 32_768,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let width = config.size("moe_intermediate_size")?.unwrap_or(768);
    let experts = Experts { counts: [128, 8], width, normalised: None };
    let mixture = mixture(config, &shared, &experts)?;
    let layers = by_kind(&mixed_layers(config, shared.layers)?, |is_mixed| {
        let head_norms = Some(shared.head_norms("self_attn.q_norm", "self_attn.k_norm"));
        let attention = AttentionSpec { head_norms, ..shared.attention() }.biased(bias, bias);
        let norm = shared.norm("input_layernorm", "attn_norm");
        LayerSpec::of(shared.hidden_size, [pre(norm, attention), mixed_or_dense(&shared, &mixture, is_mixed)])
    });
    let gguf = GgufSpec::of("qwen3moe", RotaryPairs::Halves).with_experts(true);
    shared.decoder(config, &QWEN3_MOE, layers, Some(gguf))
}
