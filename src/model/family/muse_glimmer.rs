//! Muse Glimmer: norms on both sides of every body, windows and rotation in three of four layers, norms of embeddings,
//! queries and keys without weights, a gate on attention's output, capped logits. Released models are text decoders beside
//! a tower (`wrapper`). Defaults: `MuseGlimmerTextConfig`.

use tune_kernels::linear_cross_entropy::Logits;
use tune_kernels::rms_norm::{NormWeight, RmsNorm, Rounding};

use super::Declared;
use super::layer_types::{by_kind, layer_types};
use super::shared::{Defaults, HiddenActivation, Shared};
use crate::adapter::projection::Role;
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs, Scales, SoftCaps, Unrotated, Windows};
use crate::model::parts::{
    AttentionSpec, LayerSpec, NormKind, NormSpec, OutputGate, ProjectionSpec, sandwich,
};
use crate::model::rotary::RotarySpec;

pub(super) const MUSE_GLIMMER: Declared = Declared {
    model_type: "muse_glimmer_text",
    architecture: "MuseGlimmerForCausalLM",
    models: "Muse Glimmer",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let defaults = Defaults {
        vocab_size: 202_048,
        hidden_size: 6656,
        layers: 52,
        attention_heads: 32,
        intermediate_size: 19_968,
        key_value_heads: Some(2),
        head_dim: Some(128),
        max_position_embeddings: 131_072,
        activation: HiddenActivation { key: "hidden_activation", ..Defaults::LLAMA.activation },
        epsilon: 1e-5,
        rounding: Rounding::Last,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(config.size("sliding_window")?.unwrap_or(2048)),
    };
    let is_full = |layer: usize| (shared.layers - 1 - layer).is_multiple_of(4);
    let slides = layer_types(config, shared.layers)?;
    let slides = slides.unwrap_or_else(|| (0..shared.layers).map(|layer| !is_full(layer)).collect());
    let rotary = RotarySpec::read(config, &shared.rotary_rules())?;
    let rotates = match config.numbers("layer_rope_theta")? {
        None => (0..shared.layers).map(|layer| !is_full(layer)).collect(),
        // Only whether it is 0 counts.
        Some(bases) if bases.len() == shared.layers => {
            bases.iter().map(|base| *base != 0.0).collect::<Vec<_>>()
        }
        Some(bases) => {
            let message = format!("has {} entries for {} layers", bases.len(), shared.layers);
            return Err(config.fail("layer_rope_theta", message));
        }
    };
    let bare = shared.norm("", "").kind.rms();
    let scale = config.positive("qk_scale_factor")?.unwrap_or(3.87) as f32;
    let post_epsilon = config.positive("post_norm_eps")?.unwrap_or(1e-8);
    let norm = |path, gguf, epsilon: Option<f64>| {
        let norm: NormSpec = shared.norm(path, gguf);
        let epsilon = epsilon.unwrap_or(norm.kind.epsilon());
        let kind = RmsNorm { epsilon, rounding: Rounding::Last, weight: NormWeight::OnePlus };
        NormSpec { kind: NormKind::Rms(kind), ..norm }
    };
    let kinds: Vec<_> = slides.into_iter().zip(rotates).collect();
    let layers = by_kind(&kinds, |(slides, rotates)| {
        let attention = shared.attention().biased(bias, bias);
        let shape = [shared.heads.widths()[0], shared.hidden_size];
        let gate = ProjectionSpec::new("self_attn.gate_proj".into(), shape, Role::MixerGate);
        let attention = AttentionSpec {
            bare_head_norm: bare,
            output_gate: Some(OutputGate::Own(gate)),
            rotary: rotates.then_some(0),
            // Queries are multiplied behind their norm.
            scaling: scale * attention.scaling,
            window: window.filter(|_| slides),
            ..attention
        };
        let blocks = [
            sandwich(
                norm("input_layernorm", "attn_norm", None),
                attention,
                norm("post_attention_layernorm", "post_attention_norm", Some(post_epsilon)),
            ),
            sandwich(
                norm("pre_feedforward_layernorm", "ffn_norm", None),
                shared.gated("mlp"),
                norm("post_feedforward_layernorm", "post_ffw_norm", Some(post_epsilon)),
            ),
        ];
        LayerSpec::of(shared.hidden_size, blocks)
    });
    let soft_cap = Some(config.positive("final_logit_softcapping")?.unwrap_or(20.0) as f32);
    let logits = Logits {
        scale: config.positive("output_multiplier")?.unwrap_or(0.196_116_135_138_184_04) as f32,
        soft_cap,
    };
    let gguf = GgufSpec {
        windows: Windows::Listed { always: true },
        unrotated: Unrotated::WithoutWindow,
        post_epsilon: Some(1e-8),
        scales: Scales::QueryNorm,
        soft_caps: SoftCaps::Logits,
        ..GgufSpec::of("muse-glimmer", RotaryPairs::Neighbours)
    };
    Ok(DecoderSpec {
        logits,
        embedding_norm: bare,
        ..shared.decoder_with(vec![rotary], &MUSE_GLIMMER, layers, Some(gguf))
    })
}
