//! A family that no checkpoint has, for tests: norms on both sides of every body, with weights `1 + w` that round last; a
//! GELU gate; stacked projections; a factor on every block. Its layers are of two kinds: even ones stack queries, keys
//! and values, odd ones gate and up.

use tune_kernels::gated::Activation;
use tune_kernels::rms_norm::{NormWeight, Rounding};

use super::Declared;
use super::layer_types::by_kind;
use super::shared::{Defaults, HiddenActivation, Shared};
use crate::adapter::projection::Role;
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::parts::{
    AttentionSpec, BlockSpec, BodySpec, BranchSpec, GatedInner, GatedSpec, Inner, LayerSpec, NormSpec,
    ProjectionSpec,
};

pub(super) const TOY: Declared =
    Declared { model_type: "toy", architecture: "ToyForCausalLM", models: "", read };

/// Factor on every block.
const SCALE: f32 = 0.75;

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let defaults = Defaults {
        activation: HiddenActivation {
            key: "hidden_activation",
            words: &["gelu_pytorch_tanh"],
            activation: Activation::GeluTanh,
        },
        rounding: Rounding::Last,
        norm_weight: NormWeight::OnePlus,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    let hidden = shared.hidden_size;
    let is_odd: Vec<bool> = (0..shared.layers).map(|layer| layer % 2 == 1).collect();
    let layers = by_kind(&is_odd, |is_odd| {
        let (mut attention, mut gated) = (shared.attention(), shared.gated("mlp"));
        if is_odd {
            let shape = [2 * gated.intermediate(), hidden];
            let both = ProjectionSpec::new("mlp.gate_up_proj".into(), shape, Role::GateUp);
            gated = GatedSpec { inner: GatedInner::Fused(both), ..gated };
        } else {
            let shape = [attention.heads.widths().iter().sum(), hidden];
            let all = ProjectionSpec::new("self_attn.qkv_proj".into(), shape, Role::QueryKeyValue);
            attention = AttentionSpec { inner: Inner::Fused(all), ..attention };
        }
        let norm = |path| shared.norm(path, "");
        let blocks = [
            sandwich(norm("input_layernorm"), attention, norm("post_attention_layernorm")),
            sandwich(norm("pre_feedforward_layernorm"), gated, norm("post_feedforward_layernorm")),
        ];
        LayerSpec::of(hidden, blocks)
    });
    shared.decoder(config, &TOY, layers, None)
}

fn sandwich(pre: NormSpec, body: impl Into<BodySpec>, post: NormSpec) -> BlockSpec {
    BlockSpec {
        branches: vec![BranchSpec { pre: Some(pre), body: body.into(), post: Some(post) }],
        scale: SCALE,
        post: None,
    }
}
