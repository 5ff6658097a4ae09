//! GPT-J: one layer norm before attention and feed-forward block side by side, neighbouring dimensions of a part of every head
//! rotated, an output head with a bias. Defaults: `GPTJConfig`.

use std::sync::Arc;

use serde_json::json;
use tune_kernels::activation::Function;
use tune_kernels::rope::Pairs;

use super::Declared;
use super::shared::{Defaults, HiddenActivation, Keys, Shared, UNGATED, function};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::{DecoderSpec, Paths};
use crate::model::parts::{LayerSpec, parallel};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const GPTJ: Declared =
    Declared { model_type: "gptj", architecture: "GPTJForCausalLM", models: "GPT-J", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    for key in ["attn_pdrop", "embd_pdrop", "resid_pdrop"] {
        config.must_be(key, &[json!(0)])?;
    }
    config.must_be("scale_attn_weights", &[json!(true)])?;
    // Of a head for classes, of training, and a copy of another key.
    for key in [
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "gradient_checkpointing",
        "n_ctx",
        "rotary",
    ] {
        config.get(key);
    }
    let defaults = Defaults {
        layers: 28,
        attention_heads: 16,
        vocab_size: 50_400,
        epsilon: 1e-5,
        activation: HiddenActivation { key: "activation_function", ..UNGATED },
        layer_norm: Some(("layer_norm_epsilon", true)),
        keys: Keys {
            hidden: "n_embd",
            intermediate: "n_inner",
            layers: "n_layer",
            heads: "n_head",
            positions: "n_positions",
        },
        ..Defaults::LLAMA
    };
    let mut shared = Shared::read(config, &defaults)?;
    if config.get("n_inner").is_none() {
        shared.intermediate_size = 4 * shared.hidden_size;
    }
    let function = function(config, "activation_function", Function::GeluTanh)?;
    let norm = || shared.norm("ln_1", "attn_norm");
    let attention = shared.attention_at("attn", "out_proj");
    let plain = shared.plain("mlp.fc_in", "mlp.fc_out", function, true);
    let blocks = [parallel([(norm(), attention.into()), (norm(), plain.into())])];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let dim = shared.heads.dim;
    let rotated = config.size("rotary_dim")?.unwrap_or(64);
    if rotated > dim {
        return Err(config.fail("rotary_dim", format!("is {rotated}; a head has {dim} dimensions")));
    }
    let partial = Some(rotated as f64 / dim as f64);
    let rules = Rules { partial, pairs: Pairs::Neighbours, ..shared.rotary_rules() };
    let rotary = RotarySpec::read(config, &rules)?;
    Ok(DecoderSpec {
        paths: Paths { embedding: "transformer.wte", layers: "transformer.h", head: "lm_head" },
        final_norm: shared.norm("transformer.ln_f", "output_norm"),
        head_bias: true,
        ..shared.decoder_with(vec![rotary], &GPTJ, vec![layer; shared.layers], None)
    })
}
