//! Qwen3, dense: a norm on each head's queries and keys, windows per layer. Defaults: `Qwen3Config`.

use serde_json::json;

use super::Declared;
use super::layer_types::{by_kind, windows_by_layer};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs};
use crate::model::parts::{AttentionSpec, LayerSpec, pre};

pub(super) const QWEN3: Declared =
    Declared { model_type: "qwen3", architecture: "Qwen3ForCausalLM", models: "Qwen3 (dense)", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("mlp_bias", &[json!(false)])?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let defaults = Defaults {
        vocab_size: 151_936,
        intermediate_size: 22_016,
        key_value_heads: Some(32),
        // Not derived from the hidden size.
        head_dim: Some(128),
        max_position_embeddings: 32_768,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let windows = windows_by_layer(config, shared.layers, 4096, 28)?;
    let layers = by_kind(&windows, |window| {
        let head_norms = Some(shared.head_norms("self_attn.q_norm", "self_attn.k_norm"));
        let attention = AttentionSpec { window, head_norms, ..shared.attention() }.biased(bias, bias);
        let blocks = [
            pre(shared.norm("input_layernorm", "attn_norm"), attention),
            pre(shared.norm("post_attention_layernorm", "ffn_norm"), shared.gated("mlp")),
        ];
        LayerSpec::of(shared.hidden_size, blocks)
    });
    let gguf = GgufSpec::of("qwen3", RotaryPairs::Halves);
    shared.decoder(config, &QWEN3, layers, Some(gguf))
}
