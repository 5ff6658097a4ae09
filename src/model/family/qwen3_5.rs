//! Qwen3.5 and Qwen3.6, dense: three recurrent layers to each with attention, whose output has a gate; a part of each head
//! rotated. Defaults: `Qwen3_5TextConfig`.
//!
//! Released ones are the text decoders of models for images and text (`wrapper`).

use serde_json::json;
use tune_kernels::delta_rule::DeltaHeads;
use tune_kernels::rms_norm::{NormWeight, Rounding};

use super::Declared;
use super::layer_types::by_kind;
use super::shared::{Defaults, Shared, plausible_count};
use crate::adapter::projection::Role;
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{Biases, GgufSpec, RotaryPairs};
use crate::model::parts::norm::NormKind;
use crate::model::parts::{
    AttentionSpec, BodySpec, ConstantSpec, DeltaNetSpec, Inner, LayerSpec, NormSpec, OutputGate,
    ProjectionSpec, pre,
};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const QWEN3_5: Declared = Declared {
    model_type: "qwen3_5_text",
    architecture: "Qwen3_5ForCausalLM",
    models: "Qwen3.5, Qwen3.6 (dense)",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let defaults = Defaults { intermediate_size: 12_288, key_value_heads: Some(4), ..defaults() };
    let gguf = GgufSpec { biases: Biases::None, ..GgufSpec::of("qwen35", RotaryPairs::Halves) };
    decoder(config, &QWEN3_5, &defaults, gguf, |shared| Ok(shared.gated("mlp").into()))
}

/// What the dense models and those with experts have in common.
pub(super) fn defaults() -> Defaults {
    Defaults {
        vocab_size: 248_320,
        attention_heads: 16,
        head_dim: Some(256),
        max_position_embeddings: 32_768,
        rounding: Rounding::Last,
        norm_weight: NormWeight::OnePlus,
        ..Defaults::LLAMA
    }
}

/// The decoder whose layers have this feed-forward block.
pub(super) fn decoder(
    config: &ConfigReader<'_>,
    family: &Declared,
    defaults: &Defaults,
    gguf: GgufSpec,
    feed_forward: impl Fn(&Shared) -> Result<BodySpec, Error>,
) -> Result<DecoderSpec, Error> {
    config.must_be("mlp_bias", &[json!(false)])?;
    config.must_be("attn_output_gate", &[json!(true)])?;
    config.must_be("output_gate_type", &[json!("swish"), json!("silu")])?;
    config.must_be("mamba_ssm_dtype", &[json!("float32")])?;
    // The head that drafts further tokens.
    config.ignore(&["mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mlp_only_layers"]);
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let shared = Shared::read(config, defaults)?;
    let attends = attends(config, shared.layers)?;
    let (delta_net, feed_forward) = (delta_net(config, &shared)?, feed_forward(&shared)?);
    let layers = by_kind(&attends, |attends| {
        let norm = shared.norm("input_layernorm", "attn_norm");
        let mixer = match attends {
            true => pre(norm, attention(&shared).biased(bias, bias)),
            false => pre(norm, delta_net.clone()),
        };
        let norm = shared.norm("post_attention_layernorm", "post_attention_norm");
        LayerSpec::of(shared.hidden_size, [mixer, pre(norm, feed_forward.clone())])
    });
    let rules = Rules { partial: Some(0.25), has_sections: true, ..shared.rotary_rules() };
    let rotary = RotarySpec::read(config, &rules)?;
    Ok(shared.decoder_with(vec![rotary], family, layers, Some(gguf)))
}

/// Per layer: whether it attends, or is recurrent.
fn attends(config: &ConfigReader<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    let interval = config.size("full_attention_interval")?.unwrap_or(4);
    let Some(types) = config.texts("layer_types")? else {
        return Ok((1..=layers).map(|layer| layer.is_multiple_of(interval)).collect());
    };
    if types.len() != layers {
        return Err(config.fail("layer_types", format!("has {} entries for {layers} layers", types.len())));
    }
    let attends = |name: &str| match name {
        "full_attention" => Ok(true),
        "linear_attention" => Ok(false),
        other => Err(config.fail(
            "layer_types",
            format!("has {other:?}; this family has \"full_attention\" and \"linear_attention\""),
        )),
    };
    types.into_iter().map(attends).collect()
}

fn attention(shared: &Shared) -> AttentionSpec {
    let mut attention = AttentionSpec {
        head_norms: Some(shared.head_norms("self_attn.q_norm", "self_attn.k_norm")),
        output_gate: Some(OutputGate::InQuery),
        ..shared.attention()
    };
    if let Inner::Separate { query, .. } = &mut attention.inner {
        query.shape[0] *= 2;
    }
    attention
}

fn delta_net(config: &ConfigReader<'_>, shared: &Shared) -> Result<DeltaNetSpec, Error> {
    let size = |key: &str, default| plausible_count(key, config.size(key)?.unwrap_or(default));
    let heads = DeltaHeads {
        keys: size("linear_num_key_heads", 16)?,
        values: size("linear_num_value_heads", 32)?,
        key_dim: size("linear_key_head_dim", 128)?,
        value_dim: size("linear_value_head_dim", 128)?,
    };
    let conv_size = size("linear_conv_kernel_dim", 4)?;
    if !heads.values.is_multiple_of(heads.keys) {
        let message = format!("is {}, which does not divide {} value heads", heads.keys, heads.values);
        return Err(config.fail("linear_num_key_heads", message));
    }
    let (hidden, channels) = (shared.hidden_size, heads.widths().iter().sum());
    let values = heads.values * heads.value_dim;
    let projection =
        |name: &str, shape, role| ProjectionSpec::new(format!("linear_attn.{name}"), shape, role);
    // A few rows that steer the state for a whole document.
    let gate =
        |name: &str, role| ProjectionSpec { dense: true, ..projection(name, [heads.values, hidden], role) };
    let constant = |name, shape, single| ConstantSpec { name, shape, single, place: 0 };
    let norm = shared.norm("linear_attn.norm", "ssm_norm");
    // Unlike the others, stored around one.
    let kind = NormKind::Rms(norm.kind.epsilon().into());
    Ok(DeltaNetSpec {
        heads,
        mixed: projection("in_proj_qkv", [channels, hidden], Role::Mixed),
        gate: projection("in_proj_z", [values, hidden], Role::MixerGate),
        write: gate("in_proj_b", Role::Write),
        decay: gate("in_proj_a", Role::Decay),
        conv: constant("linear_attn.conv1d.weight", vec![channels, 1, conv_size], false),
        log_rate: constant("linear_attn.A_log", vec![heads.values], true),
        bias: constant("linear_attn.dt_bias", vec![heads.values], true),
        norm: NormSpec { width: heads.value_dim, kind, ..norm },
        output: projection("out_proj", [hidden, values], Role::MixerOutput),
    })
}
