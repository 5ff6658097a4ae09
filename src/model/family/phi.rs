//! Phi-1.5 and Phi-2: one layer norm before attention and feed-forward block side by side, biases everywhere, a part of every
//! head rotated. Defaults: `PhiConfig`.

use std::sync::Arc;

use serde_json::json;
use tune_kernels::activation::Function;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared, UNGATED, function};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{Biases, GgufSpec};
use crate::model::parts::{LayerSpec, parallel};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const PHI: Declared =
    Declared { model_type: "phi", architecture: "PhiForCausalLM", models: "Phi-1.5, Phi-2", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("qk_layernorm", &[json!(false)])?;
    // Dropout of blocks and embeddings, which frozen layers go without; Phi-2's file says 0.1.
    for key in ["resid_pdrop", "embd_pdrop"] {
        config.number(key)?;
    }
    let defaults = Defaults {
        hidden_size: 2048,
        layers: 24,
        vocab_size: 51_200,
        intermediate_size: 8192,
        epsilon: 1e-5,
        activation: UNGATED,
        layer_norm: Some(("layer_norm_eps", true)),
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    uniform_layer_types(config, shared.layers, false)?;
    let function = function(config, "hidden_act", Function::GeluTanh)?;
    let norm = || shared.norm("input_layernorm", "attn_norm");
    let attention = shared.attention_at("self_attn", "dense").biased(true, true);
    let plain = shared.plain("mlp.fc1", "mlp.fc2", function, true);
    let blocks = [parallel([(norm(), attention.into()), (norm(), plain.into())])];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let rules = Rules { partial: Some(0.5), ..shared.rotary_rules() };
    let rotary = RotarySpec::read(config, &rules)?;
    let gguf = GgufSpec { biases: Biases::All, ..GgufSpec::filled("phi2") };
    Ok(DecoderSpec {
        final_norm: shared.norm("model.final_layernorm", "output_norm"),
        head_bias: true,
        ..shared.decoder_with(vec![rotary], &PHI, vec![layer; shared.layers], Some(gguf))
    })
}
