//! The feed-forward block of Gemma 4 26B-A4B: a dense one and a mixture side by side, which the residual enters by norms of
//! their own.
//!
//! ```text
//! y = x + post(post₁(mlp(pre(x))) + post₂(experts(pre₂(x))))        the router reads norm(x) · scale / √hidden
//! ```

use tune_kernels::router::{Router, Score};

use super::shared::{Shared, plausible_count};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::parts::{BlockSpec, BranchSpec, ConstantSpec, MixtureInputs, MixtureSpec};

/// The mixture of each layer, if the model has one.
pub(super) fn mixture(config: &ConfigReader<'_>, shared: &Shared) -> Result<Option<MixtureSpec>, Error> {
    let keys = ["num_experts", "top_k_experts", "moe_intermediate_size"];
    if !config.flag("enable_moe_block")?.unwrap_or(false) {
        keys.iter().for_each(|key| _ = config.get(key));
        return Ok(None);
    }
    let size = |key: &str| match config.size(key)? {
        Some(size) => plausible_count(key, size),
        None => Err(config.fail(key, "is missing")),
    };
    let [count, used, width] = [size(keys[0])?, size(keys[1])?, size(keys[2])?];
    if used > count {
        return Err(config.fail(keys[1], format!("is {used}, of {count} experts")));
    }
    let norm = shared.norm("pre_feedforward_layernorm_2", "");
    let Some(router_norm) = norm.kind.rms() else {
        return Err(config.fail(keys[0], "has norms of another kind"));
    };
    let hidden = shared.hidden_size;
    let constant = |name, shape| ConstantSpec { name, shape, single: false, place: 0 };
    Ok(Some(MixtureSpec {
        gate: constant("router.proj.weight", vec![count, hidden]),
        bias: None,
        router: Router { used, score: Score::Softmax, normalised: true, factor: 1.0 },
        experts: (0..count).map(|index| shared.expert(&format!("experts.{index}"), width)).collect(),
        shared: None,
        inputs: Some(MixtureInputs {
            experts: norm,
            router: (router_norm, constant("router.scale", vec![hidden])),
            factor: (hidden as f32).powf(-0.5),
        }),
        factors: Some(constant("router.per_expert_scale", vec![count])),
        alternates: false,
    }))
}

/// The block of both.
pub(super) fn block(shared: &Shared, experts: &MixtureSpec) -> BlockSpec {
    let norm = |path| shared.norm(path, "");
    let dense = BranchSpec {
        pre: Some(norm("pre_feedforward_layernorm")),
        body: shared.gated("mlp").into(),
        post: Some(norm("post_feedforward_layernorm_1")),
    };
    let mixture = BranchSpec {
        pre: None,
        body: experts.clone().into(),
        post: Some(norm("post_feedforward_layernorm_2")),
    };
    BlockSpec { branches: vec![dense, mixture], scale: 1.0, post: Some(norm("post_feedforward_layernorm")) }
}
