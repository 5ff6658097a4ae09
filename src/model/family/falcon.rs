//! Falcon 7B: one layer norm before attention and feed-forward block side by side, one key head for all queries, no biases.
//! Defaults: `FalconConfig`.

use std::sync::Arc;

use serde_json::json;
use tune_kernels::activation::Function;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, HiddenActivation, Shared, UNGATED, function};
use crate::adapter::projection::Role;
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::{DecoderSpec, Paths};
use crate::model::gguf_spec::{Biases, Fixed, GgufSpec};
use crate::model::parts::{AttentionSpec, Inner, LayerSpec, ProjectionSpec, parallel};
use crate::model::rotary::RotarySpec;

pub(super) const FALCON: Declared =
    Declared { model_type: "falcon", architecture: "FalconForCausalLM", models: "Falcon 7B", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("hidden_dropout", &[json!(0)])?;
    config.must_be("alibi", &[json!(false)])?;
    config.must_be("multi_query", &[json!(true)])?;
    config.must_be("parallel_attn", &[json!(true)])?;
    config.must_be("new_decoder_architecture", &[json!(false)])?;
    config.must_be("apply_residual_connection_post_layernorm", &[json!(false)])?;
    // Both say what is fixed here: one key head, one norm.
    config.must_be("num_kv_heads", &[json!(1), json!(config.size("num_attention_heads")?)])?;
    config.must_be("num_ln_in_parallel_attn", &[json!(1)])?;
    let defaults = Defaults {
        hidden_size: 4544,
        attention_heads: 71,
        vocab_size: 65_024,
        key_value_heads: Some(1),
        tied: true,
        epsilon: 1e-5,
        activation: HiddenActivation { key: "activation", ..UNGATED },
        layer_norm: Some(("layer_norm_epsilon", true)),
        ..Defaults::LLAMA
    };
    let mut shared = Shared::read(config, &defaults)?;
    uniform_layer_types(config, shared.layers, false)?;
    shared.intermediate_size = config.size("ffn_hidden_size")?.unwrap_or(4 * shared.hidden_size);
    let bias = config.flag("bias")?.unwrap_or(false);
    let function = function(config, "activation", Function::Gelu)?;
    let shape = [shared.heads.widths().iter().sum(), shared.hidden_size];
    let all = ProjectionSpec::new("self_attention.query_key_value".into(), shape, Role::QueryKeyValue);
    let attention = shared.attention_at("self_attention", "dense");
    let attention = AttentionSpec { inner: Inner::Fused(all), ..attention }.biased(bias, bias);
    let plain = shared.plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", function, bias);
    let norm = || shared.norm("input_layernorm", "attn_norm");
    let blocks = [parallel([(norm(), attention.into()), (norm(), plain.into())])];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let rotary = RotarySpec::read(config, &shared.rotary_rules())?;
    let gguf = GgufSpec {
        biases: Biases::None,
        fixed: &[("tensor_data_layout", Fixed::Text("jploski"))],
        ..GgufSpec::filled("falcon")
    };
    Ok(DecoderSpec {
        paths: Paths { embedding: "transformer.word_embeddings", layers: "transformer.h", head: "lm_head" },
        final_norm: shared.norm("transformer.ln_f", "output_norm"),
        ..shared.decoder_with(vec![rotary], &FALCON, vec![layer; shared.layers], Some(gguf))
    })
}
