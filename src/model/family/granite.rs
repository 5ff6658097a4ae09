//! Granite 3 and the dense Granite 4: Llama with factors on embeddings, scores, blocks and logits. Granite 4 is written as
//! `granitemoehybrid`, whose dense members have no layers of the other kinds. Defaults: `GraniteConfig`,
//! `GraniteMoeHybridConfig`.

use std::sync::Arc;

use serde_json::json;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{Biases, GgufSpec, RotaryPairs, Scales, Unrotated};
use crate::model::parts::{AttentionSpec, BlockSpec, GatedSpec, LayerSpec, pre};

pub(super) const GRANITE: Declared =
    Declared { model_type: "granite", architecture: "GraniteForCausalLM", models: "Granite 3", read };

pub(super) const GRANITE_HYBRID: Declared = Declared {
    model_type: "granitemoehybrid",
    architecture: "GraniteMoeHybridForCausalLM",
    models: "Granite 4 (dense)",
    read: read_hybrid,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let shared = Shared::read(config, &Defaults::LLAMA)?;
    uniform_layer_types(config, shared.layers, false)?;
    let gated = shared.gated("mlp").biased(config.flag("mlp_bias")?.unwrap_or(false));
    decoder(config, &shared, &GRANITE, Some(0), gated)
}

/// Refuses experts and layers with a recurrent state.
fn read_hybrid(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let shared = Shared::read(config, &Defaults::LLAMA)?;
    config.must_be("num_local_experts", &[json!(0)])?;
    config.must_be("mlp_bias", &[json!(false)])?;
    if config.get("num_local_experts").is_none() {
        return Err(config.fail("num_local_experts", "is missing, which stands for 8 experts; expected 0"));
    }
    let attends = |kind: &str| matches!(kind, "attention" | "full_attention");
    let kinds = config.texts("layer_types")?.or(config.texts("layers_block_type")?).unwrap_or_default();
    if kinds.len() != shared.layers || !kinds.iter().all(|kind| attends(kind)) {
        return Err(config.fail(
            "layer_types",
            "names layers other than attention, which are not implemented; the dense members of the family have none",
        ));
    }
    // Of experts and recurrent layers, which are not there.
    config.ignore(&[
        "num_experts_per_tok",
        "output_router_logits",
        "router_aux_loss_coef",
        "mamba_n_heads",
        "mamba_n_groups",
        "mamba_d_state",
        "mamba_d_head",
        "mamba_d_conv",
        "mamba_expand",
        "mamba_chunk_size",
        "mamba_conv_bias",
        "mamba_proj_bias",
        "time_step_limit",
        "time_step_min",
        "time_step_max",
        "time_step_floor",
        "init_method",
        "normalization_function",
    ]);
    let rotates = match config.text("position_embedding_type")? {
        Some("rope") => true,
        Some("nope") | None => false,
        Some(other) => {
            return Err(config.fail(
                "position_embedding_type",
                format!("is {other:?}; implemented are \"rope\" and \"nope\""),
            ));
        }
    };
    let intermediate = config.size("shared_intermediate_size")?.unwrap_or(1024);
    let gated = shared.fused_gated("shared_mlp.input_linear", "shared_mlp.output_linear", intermediate);
    decoder(config, &shared, &GRANITE_HYBRID, rotates.then_some(0), gated)
}

fn decoder(
    config: &ConfigReader<'_>,
    shared: &Shared,
    family: &Declared,
    rotary: Option<usize>,
    gated: GatedSpec,
) -> Result<DecoderSpec, Error> {
    let factor = |key: &str| Ok::<_, Error>(config.positive(key)?.unwrap_or(1.0));
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let scaling = factor("attention_multiplier")? as f32;
    let scale = factor("residual_multiplier")? as f32;
    let attention = AttentionSpec { scaling, rotary, ..shared.attention() }.biased(bias, bias);
    let blocks = [
        BlockSpec { scale, ..pre(shared.norm("input_layernorm", "attn_norm"), attention) },
        BlockSpec { scale, ..pre(shared.norm("post_attention_layernorm", "ffn_norm"), gated) },
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let gguf = GgufSpec {
        unrotated: Unrotated::AllOrNone,
        takes_frequency_divisors: true,
        separates_gate_and_up: true,
        scales: Scales::Keys,
        biases: Biases::Any,
        ..GgufSpec::of("granite", RotaryPairs::Neighbours)
    };
    Ok(DecoderSpec {
        embedding_scale: factor("embedding_multiplier")? as f32,
        logit_scale: (1.0 / factor("logits_scaling")?) as f32,
        ..shared.decoder(config, family, vec![layer; shared.layers], Some(gguf))?
    })
}
