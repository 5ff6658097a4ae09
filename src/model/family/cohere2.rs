//! Command R7B and other models of Cohere's second architecture: attention and feed-forward block side by side behind one
//! layer norm, windows and rotation in three of four layers, a factor on logits. Defaults: `Cohere2Config`.

use serde_json::json;
use tune_kernels::rope::Pairs;

use super::Declared;
use super::layer_types::{by_kind, layer_types};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs, Scales, Unrotated, Windows};
use crate::model::parts::{AttentionSpec, LayerSpec, parallel};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const COHERE2: Declared = Declared {
    model_type: "cohere2",
    architecture: "Cohere2ForCausalLM",
    models: "Command R7B, Command A",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    for (key, value) in [
        ("use_qk_norm", json!(false)),
        ("use_gated_activation", json!(true)),
        ("use_parallel_block", json!(true)),
        ("rotary_pct", json!(1.0)),
        ("position_embedding_type", json!("rope_gptj")),
        ("order_of_interleaved_layers", json!("local_attn_first")),
    ] {
        config.must_be(key, &[value])?;
    }
    // Of caches and of training on several devices, and copies of other keys.
    config.ignore(&[
        "_sliding_window_pattern",
        "cache_implementation",
        "layer_switch",
        "use_embedding_sharing",
        "use_parallel_embedding",
    ]);
    let defaults = Defaults {
        hidden_size: 8192,
        layers: 40,
        attention_heads: 64,
        vocab_size: 256_000,
        intermediate_size: 22_528,
        max_position_embeddings: 8192,
        tied: true,
        epsilon: 1e-5,
        layer_norm: Some(("layer_norm_eps", false)),
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    // Absent means the default of 4096; null means none.
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(config.size("sliding_window")?.unwrap_or(4096)),
    };
    let every = config.size("sliding_window_pattern")?.unwrap_or(4);
    let slides = layer_types(config, shared.layers)?;
    let slides =
        slides.unwrap_or_else(|| (1..=shared.layers).map(|layer| !layer.is_multiple_of(every)).collect());
    let layers = by_kind(&slides, |slides| {
        let window = window.filter(|_| slides);
        let rotary = window.map(|_| 0);
        let attention = AttentionSpec { window, rotary, ..shared.attention() }.biased(bias, bias);
        let norm = || shared.norm("input_layernorm", "attn_norm");
        let block = parallel([(norm(), attention.into()), (norm(), shared.gated("mlp").into())]);
        LayerSpec::of(shared.hidden_size, [block])
    });
    let rotary = RotarySpec::read(config, &Rules { pairs: Pairs::Neighbours, ..shared.rotary_rules() })?;
    let logit_scale = config.positive("logit_scale")?.unwrap_or(0.0625) as f32;
    let gguf = GgufSpec {
        windows: Windows::Listed { always: false },
        unrotated: Unrotated::WithoutWindow,
        scales: Scales::LogitKey,
        ..GgufSpec::of("cohere2", RotaryPairs::Neighbours)
    };
    Ok(DecoderSpec { logit_scale, ..shared.decoder_with(vec![rotary], &COHERE2, layers, Some(gguf)) })
}
