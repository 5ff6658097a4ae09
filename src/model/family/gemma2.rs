//! Gemma 2: Gemma with norms on both sides of every body, windows in every other layer, capped scores and logits. Defaults:
//! `Gemma2Config`.

use tune_kernels::linear_cross_entropy::Logits;

use super::Declared;
use super::gemma::{self, scaled};
use super::layer_types::{by_kind, layer_types};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs, Scales, SoftCaps, Windows};
use crate::model::parts::{AttentionSpec, BlockSpec, BodySpec, LayerSpec, sandwich};

pub(super) const GEMMA2: Declared =
    Declared { model_type: "gemma2", architecture: "Gemma2ForCausalLM", models: "Gemma 2", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    gemma::check(config)?;
    let defaults = Defaults {
        hidden_size: 2304,
        layers: 26,
        attention_heads: 8,
        intermediate_size: 9216,
        key_value_heads: Some(4),
        ..gemma::DEFAULTS
    };
    let shared = Shared::read(config, &defaults)?;
    let window = window(config)?;
    let slides = layer_types(config, shared.layers)?;
    let slides = slides.unwrap_or_else(|| (0..shared.layers).map(|layer| layer.is_multiple_of(2)).collect());
    let soft_cap = cap(config, "attn_logit_softcapping", Some(50.0))?;
    let attention = AttentionSpec { soft_cap, ..attention(config, &shared)? };
    let layers = by_kind(&slides, |slides| {
        layer(&shared, AttentionSpec { window: window.filter(|_| slides), ..attention.clone() }, None)
    });
    let logits = logits(config, Some(30.0))?;
    let gguf = GgufSpec {
        windows: Windows::Listed { always: true },
        scales: Scales::Gemma { wide: 46 },
        soft_caps: SoftCaps::ScoresAndLogits,
        ..GgufSpec::of("gemma2", RotaryPairs::Halves)
    };
    Ok(DecoderSpec { logits, ..scaled(shared.decoder(config, &GEMMA2, layers, Some(gguf))?) })
}

/// Attention with the factor on scores that the family names.
pub(super) fn attention(config: &ConfigReader<'_>, shared: &Shared) -> Result<AttentionSpec, Error> {
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let scalar = config.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(AttentionSpec { scaling: scalar.powf(-0.5) as f32, ..shared.attention() }.biased(bias, bias))
}

/// `sliding_window`; null means none.
pub(super) fn window(config: &ConfigReader<'_>) -> Result<Option<usize>, Error> {
    match config.is_null("sliding_window") {
        true => Ok(None),
        false => Ok(Some(config.size("sliding_window")?.unwrap_or(4096))),
    }
}

/// A layer with norms on both sides of every body, and `more` behind them.
pub(super) fn layer(shared: &Shared, attention: impl Into<BodySpec>, more: Option<BlockSpec>) -> LayerSpec {
    let norm = |path, gguf| shared.norm(path, gguf);
    let [before, behind] =
        [norm("pre_feedforward_layernorm", "ffn_norm"), norm("post_feedforward_layernorm", "post_ffw_norm")];
    layer_with(shared, attention, sandwich(before, shared.gated("mlp"), behind), more)
}

/// The same with another feed-forward block.
pub(super) fn layer_with(
    shared: &Shared,
    attention: impl Into<BodySpec>,
    feed_forward: BlockSpec,
    more: Option<BlockSpec>,
) -> LayerSpec {
    let norm = |path, gguf| shared.norm(path, gguf);
    let (before, behind) =
        (norm("input_layernorm", "attn_norm"), norm("post_attention_layernorm", "post_attention_norm"));
    let mut blocks = vec![sandwich(before, attention, behind), feed_forward];
    blocks.extend(more);
    LayerSpec::of(shared.hidden_size, blocks)
}

/// A cap; null means none.
pub(super) fn cap(config: &ConfigReader<'_>, key: &str, default: Option<f32>) -> Result<Option<f32>, Error> {
    match config.is_null(key) {
        true => {
            config.get(key);
            Ok(None)
        }
        false => Ok(config.positive(key)?.map(|cap| cap as f32).or(default)),
    }
}

/// Logits under `final_logit_softcapping`.
pub(super) fn logits(config: &ConfigReader<'_>, default: Option<f32>) -> Result<Logits, Error> {
    Ok(Logits { scale: 1.0, soft_cap: cap(config, "final_logit_softcapping", default)? })
}
