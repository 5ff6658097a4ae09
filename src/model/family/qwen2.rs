//! Qwen2 and Qwen2.5: biases on queries, keys and values alone; windows per layer. Defaults: `Qwen2Config`.

use serde_json::json;

use super::Declared;
use super::layer_types::{by_kind, windows_by_layer};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::GgufSpec;
use crate::model::parts::{AttentionSpec, LayerSpec, pre};

pub(super) const QWEN2: Declared =
    Declared { model_type: "qwen2", architecture: "Qwen2ForCausalLM", models: "Qwen2, Qwen2.5", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("use_mrope", &[json!(false)])?;
    config.must_be("mlp_bias", &[json!(false)])?;
    // Its projections have their biases whatever such a key would say.
    config.must_be("attention_bias", &[json!(true)])?;
    let defaults = Defaults {
        vocab_size: 151_936,
        intermediate_size: 22_016,
        key_value_heads: Some(32),
        max_position_embeddings: 32_768,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let windows = windows_by_layer(config, shared.layers, 4096, 28)?;
    let layers = by_kind(&windows, |window| {
        let attention = AttentionSpec { window, ..shared.attention() }.biased(true, false);
        let blocks = [
            pre(shared.norm("input_layernorm", "attn_norm"), attention),
            pre(shared.norm("post_attention_layernorm", "ffn_norm"), shared.gated("mlp")),
        ];
        LayerSpec::of(shared.hidden_size, blocks)
    });
    let gguf = GgufSpec::filled("qwen2");
    shared.decoder(config, &QWEN2, layers, Some(gguf))
}
