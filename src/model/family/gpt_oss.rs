//! gpt-oss: experts with biases and a clamped activation, a sink in every softmax, windows in every other layer. Defaults:
//! `GptOssConfig`.

use serde_json::json;
use tune_kernels::gated::{Activation, CLAMPED_FACTOR, CLAMPED_LIMIT};
use tune_kernels::rms_norm::Rounding;

use super::Declared;
use super::experts::{Experts, mixture};
use super::layer_types::{by_kind, layer_types};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{Biases, GgufSpec, RotaryPairs, Windows};
use crate::model::parts::{
    AttentionSpec, ConstantSpec, GatedInner, GatedSpec, LayerSpec, MixtureSpec, ProjectionSpec, pre,
};

pub(super) const GPT_OSS: Declared = Declared {
    model_type: "gpt_oss",
    architecture: "GptOssForCausalLM",
    models: "gpt-oss-20b, gpt-oss-120b",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let number = |number: f32| [json!((f64::from(number) * 1e3).round() / 1e3)];
    config.must_be("swiglu_alpha", &number(CLAMPED_FACTOR))?;
    config.must_be("swiglu_limit", &number(CLAMPED_LIMIT))?;
    if config.get("rope_parameters").is_none() && config.get("rope_scaling").is_none() {
        return Err(config.fail("rope_parameters", "is missing"));
    }
    // What later keys say too.
    config.ignore(&["experts_per_token", "initial_context_length"]);
    let defaults = Defaults {
        vocab_size: 201_088,
        intermediate_size: 2880,
        key_value_heads: Some(8),
        head_dim: Some(64),
        max_position_embeddings: 131_072,
        rope_theta: 150_000.0,
        epsilon: 1e-5,
        rounding: Rounding::Last,
        mxfp4: true,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let quantization = config.object("quantization_config")?;
    let method = quantization.as_ref().map(|quantization| quantization.text("quant_method")).transpose()?;
    let mxfp4 = method.flatten() == Some("mxfp4");
    let bias = config.flag("attention_bias")?.unwrap_or(true);
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(config.size("sliding_window")?.unwrap_or(128)),
    };
    let slides = layer_types(config, shared.layers)?;
    let slides = slides.unwrap_or_else(|| (0..shared.layers).map(|layer| layer % 2 == 0).collect());
    let constant = |name, shape, single| ConstantSpec { name, shape, single, place: 0 };
    let experts = Experts { counts: [128, 4], width: shared.intermediate_size, normalised: Some(true) };
    let plain = mixture(config, &shared, &experts)?;
    let count = plain.experts.len();
    let mixture = MixtureSpec {
        gate: constant("mlp.router.weight", vec![count, shared.hidden_size], false),
        bias: Some(constant("mlp.router.bias", vec![count], false)),
        experts: plain.experts.into_iter().map(|expert| of_expert(expert, mxfp4)).collect(),
        alternates: true,
        ..plain
    };
    let layers = by_kind(&slides, |slides| {
        let attention = AttentionSpec {
            window: window.filter(|_| slides),
            sinks: Some(constant("self_attn.sinks", vec![shared.heads.queries], true)),
            ..shared.attention()
        };
        let blocks = [
            pre(shared.norm("input_layernorm", "attn_norm"), attention.biased(bias, bias)),
            pre(shared.norm("post_attention_layernorm", "post_attention_norm"), mixture.clone()),
        ];
        LayerSpec::of(shared.hidden_size, blocks)
    });
    let gguf = GgufSpec {
        windows: Windows::Listed { always: true },
        biases: Biases::All,
        ..GgufSpec::of("gpt-oss", RotaryPairs::Halves).with_experts(true)
    };
    shared.decoder(config, &GPT_OSS, layers, Some(gguf))
}

/// An expert with biases and its own activation.
fn of_expert(expert: GatedSpec, mxfp4: bool) -> GatedSpec {
    let mut expert = GatedSpec { activation: Activation::Clamped, ..expert }.biased(true);
    let mark = |projection: &mut ProjectionSpec| projection.mxfp4 = mxfp4;
    match &mut expert.inner {
        GatedInner::Separate { gate, up } => [gate, up].into_iter().for_each(mark),
        GatedInner::Fused(both) => mark(both),
    }
    mark(&mut expert.down);
    expert
}
