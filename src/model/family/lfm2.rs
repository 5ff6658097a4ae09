//! LFM2 and LFM2.5, dense: gated short convolutions, and attention with norms over single heads in between. Defaults:
//! `Lfm2Config`.

use serde_json::json;

use super::Declared;
use super::layer_types::by_kind;
use super::shared::{Defaults, Shared, plausible_count, plausible_size};
use crate::adapter::projection::Role;
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{Biases, GgufSpec};
use crate::model::parts::norm::NormKind;
use crate::model::parts::{
    AttentionSpec, ConstantSpec, GatedInner, GatedSpec, LayerSpec, ProjectionSpec, ShortConvSpec, pre,
};

pub(super) const LFM2: Declared =
    Declared { model_type: "lfm2", architecture: "Lfm2ForCausalLM", models: "LFM2, LFM2.5 (dense)", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("conv_bias", &[json!(false)])?;
    // Of the family's own training code; all of them follow from other keys.
    config.ignore(&[
        "block_dim",
        "block_mlp_init_scale",
        "block_norm_eps",
        "block_out_init_scale",
        "block_use_swiglu",
        "block_use_xavier_init",
        "conv_dim",
        "conv_dim_out",
        "conv_use_xavier_init",
        "num_heads",
        "use_pos_enc",
    ]);
    let defaults = Defaults {
        vocab_size: 65_536,
        intermediate_size: 12_288,
        key_value_heads: Some(8),
        max_position_embeddings: 128_000,
        rope_theta: 1_000_000.0,
        tied: true,
        ..Defaults::LLAMA
    };
    let mut shared = Shared::read(config, &defaults)?;
    shared.tied = config.flag("tie_embedding")?.unwrap_or(shared.tied);
    shared.norm = NormKind::Rms(config.positive("norm_eps")?.unwrap_or(1e-5).into());
    let size = plausible_count("conv_L_cache", config.size("conv_L_cache")?.unwrap_or(3))?;
    let intermediate = intermediate_size(config, shared.intermediate_size)?;
    let attends = attends(config, shared.layers)?;
    let layers = by_kind(&attends, |attends| {
        let norm = shared.norm("operator_norm", "attn_norm");
        let mixer = match attends {
            true => pre(norm, attention(&shared)),
            false => pre(norm, short_conv(shared.hidden_size, size)),
        };
        let gated = gated(shared.hidden_size, intermediate, &shared);
        LayerSpec::of(shared.hidden_size, [mixer, pre(shared.norm("ffn_norm", "ffn_norm"), gated)])
    });
    let gguf = GgufSpec { biases: Biases::None, ..GgufSpec::filled("lfm2") };
    let spec = shared.decoder(config, &LFM2, layers, Some(gguf))?;
    let final_norm = shared.norm("model.embedding_norm", "token_embd_norm");
    Ok(DecoderSpec { final_norm, ..spec })
}

/// Per layer: whether it attends, or convolves.
fn attends(config: &ConfigReader<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    let indices = config.numbers("full_attn_idxs")?;
    let Some(types) = config.texts("layer_types")? else {
        let attends = |layer: usize| indices.as_ref().is_none_or(|indices| indices.contains(&(layer as f64)));
        return Ok((0..layers).map(attends).collect());
    };
    if types.len() != layers {
        return Err(config.fail("layer_types", format!("has {} entries for {layers} layers", types.len())));
    }
    let attends = |name: &str| match name {
        "full_attention" => Ok(true),
        "conv" => Ok(false),
        other => {
            let message = format!("has {other:?}; this family has \"full_attention\" and \"conv\"");
            Err(config.fail("layer_types", message))
        }
    };
    types.into_iter().map(attends).collect()
}

/// Width of the feed-forward block.
fn intermediate_size(config: &ConfigReader<'_>, given: usize) -> Result<usize, Error> {
    let given = plausible_size("block_ff_dim", config.size("block_ff_dim")?.unwrap_or(given))?;
    let adjusts = config.flag("block_auto_adjust_ff_dim")?.unwrap_or(true);
    let multiple = plausible_size("block_multiple_of", config.size("block_multiple_of")?.unwrap_or(256))?;
    let factor = config.positive("block_ffn_dim_multiplier")?.unwrap_or(1.0);
    if !adjusts {
        return Ok(given);
    }
    let two_thirds = (2.0 * given as f64 / 3.0) as usize;
    plausible_size(
        "block_ffn_dim_multiplier",
        ((factor * two_thirds as f64) as usize).next_multiple_of(multiple),
    )
}

fn attention(shared: &Shared) -> AttentionSpec {
    let head_norms = Some(shared.head_norms("self_attn.q_layernorm", "self_attn.k_layernorm"));
    AttentionSpec { head_norms, ..shared.attention_at("self_attn", "out_proj") }
}

fn short_conv(hidden: usize, size: usize) -> ShortConvSpec {
    let projection =
        |name: &str, rows, role| ProjectionSpec::new(format!("conv.{name}"), [rows, hidden], role);
    ShortConvSpec {
        input: projection("in_proj", 3 * hidden, Role::Mixed),
        conv: ConstantSpec {
            name: "conv.conv.weight",
            shape: vec![hidden, 1, size],
            single: false,
            place: 0,
        },
        output: projection("out_proj", hidden, Role::MixerOutput),
    }
}

fn gated(hidden: usize, intermediate: usize, shared: &Shared) -> GatedSpec {
    let projection =
        |name: &str, shape, role| ProjectionSpec::new(format!("feed_forward.{name}"), shape, role);
    GatedSpec {
        inner: GatedInner::Separate {
            gate: projection("w1", [intermediate, hidden], Role::Gate),
            up: projection("w3", [intermediate, hidden], Role::Up),
        },
        down: projection("w2", [hidden, intermediate], Role::Down),
        ..shared.gated("feed_forward")
    }
}
