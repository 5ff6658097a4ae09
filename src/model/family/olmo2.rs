//! OLMo 2: norms behind the blocks instead of before them, and over all heads of queries and of keys. Defaults:
//! `Olmo2Config`.

use std::sync::Arc;

use tune_kernels::rms_norm::Rounding;

use super::Declared;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, Windows};
use crate::model::parts::{AttentionSpec, LayerSpec, post};

pub(super) const OLMO2: Declared =
    Declared { model_type: "olmo2", architecture: "Olmo2ForCausalLM", models: "OLMo 2", read };

/// Those of OLMo 3 too.
pub(super) const DEFAULTS: Defaults =
    Defaults { vocab_size: 50_304, epsilon: 1e-5, rounding: Rounding::Last, ..Defaults::LLAMA };

/// How llama.cpp takes both.
pub(super) const GGUF: GgufSpec =
    GgufSpec { windows: Windows::Listed { always: false }, ..GgufSpec::filled("olmo2") };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let shared = Shared::read(config, &DEFAULTS)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let layer = Arc::new(layer(&shared, shared.attention().biased(bias, bias)));
    shared.decoder(config, &OLMO2, vec![layer; shared.layers], Some(GGUF))
}

/// A layer around this attention, which is given norms of its queries and keys.
pub(super) fn layer(shared: &Shared, attention: AttentionSpec) -> LayerSpec {
    let norms = shared.whole_norms("self_attn.q_norm", "self_attn.k_norm");
    let attention = AttentionSpec { head_norms: Some(norms), ..attention };
    let blocks = [
        post(attention, shared.norm("post_attention_layernorm", "post_attention_norm")),
        post(shared.gated("mlp"), shared.norm("post_feedforward_layernorm", "post_ffw_norm")),
    ];
    LayerSpec::of(shared.hidden_size, blocks)
}
