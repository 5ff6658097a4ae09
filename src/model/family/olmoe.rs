//! OLMoE: mixtures in all layers, norms over all heads of queries and of keys. Defaults: `OlmoeConfig`.

use std::sync::Arc;

use serde_json::json;

use super::Declared;
use super::experts::{Experts, mixture};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::GgufSpec;
use crate::model::parts::{AttentionSpec, LayerSpec, pre};

pub(super) const OLMOE: Declared =
    Declared { model_type: "olmoe", architecture: "OlmoeForCausalLM", models: "OLMoE-1B-7B", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    // Only null is without effect.
    config.must_be("clip_qkv", &[json!(null)])?;
    let defaults = Defaults {
        vocab_size: 50_304,
        intermediate_size: 2048,
        max_position_embeddings: 4096,
        epsilon: 1e-5,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let head_norms = Some(shared.whole_norms("self_attn.q_norm", "self_attn.k_norm"));
    let attention = AttentionSpec { head_norms, ..shared.attention() }.biased(bias, bias);
    let experts = Experts { counts: [64, 8], width: shared.intermediate_size, normalised: None };
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), attention),
        pre(shared.norm("post_attention_layernorm", "ffn_norm"), mixture(config, &shared, &experts)?),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let gguf = GgufSpec { shares_keys: false, ..GgufSpec::filled("olmoe").with_experts(false) };
    shared.decoder(config, &OLMOE, vec![layer; shared.layers], Some(gguf))
}
