//! Llama 2 to 3.2, SmolLM2 and other models that call themselves Llama: full attention, optional biases everywhere at
//! once. Defaults: `LlamaConfig`.

use std::sync::Arc;

use serde_json::json;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::GgufSpec;
use crate::model::parts::{LayerSpec, pre};

pub(super) const LLAMA: Declared = Declared {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    models: "Llama 2, 3, 3.1, 3.2, 3.3, SmolLM2, and others that call themselves Llama",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    // Above 1 the projections were once split and summed in another order.
    config.must_be("pretraining_tp", &[json!(1)])?;
    config.must_be("use_sliding_window", &[json!(false)])?;
    let shared = Shared::read(config, &Defaults::LLAMA)?;
    uniform_layer_types(config, shared.layers, false)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let gated = shared.gated("mlp").biased(config.flag("mlp_bias")?.unwrap_or(false));
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), shared.attention().biased(bias, bias)),
        pre(shared.norm("post_attention_layernorm", "ffn_norm"), gated),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    shared.decoder(config, &LLAMA, vec![layer; shared.layers], Some(GgufSpec::LLAMA))
}
