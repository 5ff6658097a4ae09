//! Qwen3.5 and Qwen3.6 with experts, one of which every token passes behind a gate; else as the dense ones. Defaults:
//! `Qwen3_5MoeTextConfig`.

use super::Declared;
use super::experts::{Experts, mixture, with_shared};
use super::qwen3_5::{decoder, defaults};
use super::shared::Defaults;
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{Biases, GgufSpec, RotaryPairs};

pub(super) const QWEN3_5_MOE: Declared = Declared {
    model_type: "qwen3_5_moe_text",
    architecture: "Qwen3_5MoeForCausalLM",
    models: "Qwen3.5-35B-A3B, Qwen3.6-35B-A3B and the like",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    // All layers are mixtures, so that a dense width says nothing.
    let defaults = Defaults {
        hidden_size: 2048,
        layers: 40,
        intermediate_size: 512,
        key_value_heads: Some(2),
        ..defaults()
    };
    let gguf = GgufSpec { biases: Biases::None, ..GgufSpec::of("qwen35moe", RotaryPairs::Halves) };
    decoder(config, &QWEN3_5_MOE, &defaults, gguf.with_experts(true), |shared| {
        let width = config.size("moe_intermediate_size")?.unwrap_or(512);
        let experts = Experts { counts: [256, 8], width, normalised: Some(true) };
        let width = config.size("shared_expert_intermediate_size")?.unwrap_or(512);
        config.ignore(&["norm_topk_prob", "decoder_sparse_step"]);
        Ok(with_shared(mixture(config, shared, &experts)?, shared, width).into())
    })
}
