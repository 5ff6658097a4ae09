//! Arcee: Llama with a feed-forward block without a gate. Defaults: `ArceeConfig`.

use std::sync::Arc;

use tune_kernels::activation::Function;

use super::Declared;
use super::shared::{Defaults, HiddenActivation, Shared, UNGATED, function};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs};
use crate::model::parts::{LayerSpec, pre};

pub(super) const ARCEE: Declared =
    Declared { model_type: "arcee", architecture: "ArceeForCausalLM", models: "Arcee AFM", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let defaults = Defaults {
        hidden_size: 2560,
        intermediate_size: 18_432,
        max_position_embeddings: 4096,
        epsilon: 1e-5,
        activation: HiddenActivation { key: "hidden_act", ..UNGATED },
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.flag("mlp_bias")?.unwrap_or(false);
    let function = function(config, "hidden_act", Function::ReluSquared)?;
    let plain = shared.plain("mlp.up_proj", "mlp.down_proj", function, mlp_bias);
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), shared.attention().biased(bias, bias)),
        pre(shared.norm("post_attention_layernorm", "ffn_norm"), plain),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let gguf = GgufSpec { takes_frequency_divisors: true, ..GgufSpec::of("arcee", RotaryPairs::Neighbours) };
    shared.decoder(config, &ARCEE, vec![layer; shared.layers], Some(gguf))
}
