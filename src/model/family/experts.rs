//! Mixtures of experts as families share them: which keys say how many there are, how wide they are, and how they are
//! chosen.

use tune_kernels::router::{Router, Score};

use super::shared::{Shared, plausible_count};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::parts::{BlockSpec, ConstantSpec, MixtureSpec, SharedExpertSpec, pre};

/// What a family says of its mixtures, and its values for keys that are absent.
pub(super) struct Experts {
    /// Experts, and those that a token passes.
    pub(super) counts: [usize; 2],
    /// Width of gate and up of each.
    pub(super) width: usize,
    /// Whether the weights of a token add up to 1; `None`: `norm_topk_prob` says, by default not.
    pub(super) normalised: Option<bool>,
}

/// The mixture of the module `mlp`, without an expert that every token passes.
pub(super) fn mixture(
    config: &ConfigReader<'_>,
    shared: &Shared,
    experts: &Experts,
) -> Result<MixtureSpec, Error> {
    // They concern a loss beside that of the answers.
    config.ignore(&["router_aux_loss_coef", "output_router_logits"]);
    let own = config.size("num_experts")?;
    let count = own.or(config.size("num_local_experts")?).unwrap_or(experts.counts[0]);
    let count = plausible_count("num_experts", count)?;
    let used = config.size("num_experts_per_tok")?.unwrap_or(experts.counts[1]);
    if used > count {
        return Err(config.fail("num_experts_per_tok", format!("is {used}, of {count} experts")));
    }
    let normalised = match experts.normalised {
        Some(normalised) => normalised,
        None => config.flag("norm_topk_prob")?.unwrap_or(false),
    };
    let expert = |index: usize| shared.expert(&format!("mlp.experts.{index}"), experts.width);
    Ok(MixtureSpec {
        gate: ConstantSpec {
            name: "mlp.gate.weight",
            shape: vec![count, shared.hidden_size],
            single: false,
            place: 0,
        },
        bias: None,
        router: Router { used, score: Score::Softmax, normalised, factor: 1.0 },
        experts: (0..count).map(expert).collect(),
        shared: None,
        inputs: None,
        factors: None,
        alternates: false,
    })
}

/// The same with an expert that every token passes behind a gate.
pub(super) fn with_shared(mixture: MixtureSpec, shared: &Shared, width: usize) -> MixtureSpec {
    let gate = ConstantSpec {
        name: "mlp.shared_expert_gate.weight",
        shape: vec![1, shared.hidden_size],
        single: false,
        place: 0,
    };
    let expert = SharedExpertSpec { gated: shared.gated_of("mlp.shared_expert", width), gate: Some(gate) };
    MixtureSpec { shared: Some(expert), ..mixture }
}

/// The feed-forward block of a layer under `mlp`: the mixture, or a dense one, behind the same norm.
pub(super) fn mixed_or_dense(shared: &Shared, mixture: &MixtureSpec, is_mixed: bool) -> BlockSpec {
    let norm = shared.norm("post_attention_layernorm", "ffn_norm");
    match is_mixed {
        true => pre(norm, mixture.clone()),
        false => pre(norm, shared.gated("mlp")),
    }
}

/// Per layer: whether it is a mixture, as `mlp_only_layers` and `decoder_sparse_step` say.
pub(super) fn mixed_layers(config: &ConfigReader<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    let step = config.size("decoder_sparse_step")?.unwrap_or(1);
    let dense = config.numbers("mlp_only_layers")?.unwrap_or_default();
    let is_mixed = |layer: usize| (layer + 1).is_multiple_of(step) && !dense.contains(&(layer as f64));
    Ok((0..layers).map(is_mixed).collect())
}
