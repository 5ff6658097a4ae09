//! StarCoder2: Llama with layer norms, a feed-forward block without a gate, and biases. Defaults: `Starcoder2Config`.

use std::sync::Arc;

use tune_kernels::activation::Function;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared, UNGATED, function};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{Biases, GgufSpec};
use crate::model::parts::{AttentionSpec, LayerSpec, pre};

pub(super) const STARCODER2: Declared =
    Declared { model_type: "starcoder2", architecture: "Starcoder2ForCausalLM", models: "StarCoder2", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    // Dropout of blocks and embeddings, which frozen layers go without; released files say 0.1.
    for key in ["residual_dropout", "embedding_dropout"] {
        config.number(key)?;
    }
    // What norms and blocks are called, which is fixed; and keys of the code that it grew from.
    config.ignore(&[
        "norm_type",
        "mlp_type",
        "activation_function",
        "attention_softmax_in_fp32",
        "layer_norm_epsilon",
        "scale_attention_softmax_in_fp32",
        "scale_attn_weights",
    ]);
    let defaults = Defaults {
        hidden_size: 3072,
        layers: 30,
        attention_heads: 24,
        vocab_size: 49_152,
        intermediate_size: 12_288,
        key_value_heads: Some(2),
        max_position_embeddings: 4096,
        tied: true,
        drops_attention: true,
        epsilon: 1e-5,
        activation: UNGATED,
        layer_norm: Some(("norm_epsilon", true)),
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let window = config.size("sliding_window")?;
    uniform_layer_types(config, shared.layers, window.is_some())?;
    let bias = config.flag("use_bias")?.unwrap_or(true);
    let function = function(config, "hidden_act", Function::GeluTanh)?;
    let attention = AttentionSpec { window, ..shared.attention() }.biased(bias, bias);
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), attention),
        pre(
            shared.norm("post_attention_layernorm", "ffn_norm"),
            shared.plain("mlp.c_fc", "mlp.c_proj", function, bias),
        ),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let gguf = GgufSpec { biases: Biases::All, ..GgufSpec::filled("starcoder2") };
    shared.decoder(config, &STARCODER2, vec![layer; shared.layers], Some(gguf))
}
