//! Mixtures of experts in llama.cpp's terms: one tensor for each projection of all experts of a layer.
//!
//! | here | there |
//! |---|---|
//! | router, its bias | `ffn_gate_inp`, in f32 |
//! | gate, up, down of expert E | row E of `ffn_gate_exps`, `ffn_up_exps`, `ffn_down_exps` |
//! | those of the expert that every token passes | `ffn_gate_shexp`, `ffn_up_shexp`, `ffn_down_shexp` |
//! | its gate | `ffn_gate_inp_shexp` |

use super::super::Error;
use super::container::Value;
use super::family::{not_carried, size};
use super::mixers::Constant;
use crate::adapter::projection::Role;
use crate::model::DecoderSpec;
use crate::model::gguf_spec::GgufSpec;
use crate::model::parts::{ConstantSpec, LayerSpec, MixtureSpec, ProjectionSpec};

/// Adds the architecture's keys.
///
/// # Errors
/// llama.cpp computes something else.
pub(super) fn put(
    spec: &DecoderSpec,
    gguf: GgufSpec,
    put: &mut impl FnMut(&str, Value),
) -> Result<(), Error> {
    let mixtures: Vec<&MixtureSpec> = spec.layers.iter().filter_map(|layer| layer.mixture()).collect();
    let Some(first) = mixtures.first() else { return Ok(()) };
    if mixtures.len() < spec.layers.len() {
        return Err(not_carried(spec, "llama.cpp has experts in all of its layers"));
    }
    if gguf.normalises_experts != Some(first.router.normalised) || first.router.factor != 1.0 {
        let reason = format!("llama.cpp weighs the experts of a {} in another way", gguf.architecture);
        return Err(not_carried(spec, reason));
    }
    put("expert_count", size(first.experts.len()));
    put("expert_used_count", size(first.router.used));
    put("expert_feed_forward_length", size(first.intermediate()));
    if let Some(shared) = &first.shared {
        put("expert_shared_feed_forward_length", size(shared.gated.intermediate()));
    }
    Ok(())
}

/// The place of a mixture's own tensor; `None` for another.
pub(super) fn constant(layer: &LayerSpec, constant: &ConstantSpec) -> Option<Constant> {
    let mixture = layer.mixture()?;
    let shared = mixture.shared.as_ref().and_then(|shared| shared.gate.as_ref());
    match constant {
        constant if *constant == mixture.gate => Some(Constant::plain("ffn_gate_inp.weight")),
        constant if mixture.bias.as_ref() == Some(constant) => Some(Constant::plain("ffn_gate_inp.bias")),
        constant if shared == Some(constant) => Some(Constant::plain("ffn_gate_inp_shexp.weight")),
        _ => None,
    }
}

/// The name of a projection of all experts of a layer together.
pub(super) fn stacked_name(role: Role) -> Option<&'static str> {
    match role {
        Role::ExpertGate => Some("ffn_gate_exps"),
        Role::ExpertUp => Some("ffn_up_exps"),
        Role::ExpertDown => Some("ffn_down_exps"),
        _ => None,
    }
}

/// The name of a projection of the expert that every token passes.
pub(super) fn shared_name(layer: &LayerSpec, projection: &ProjectionSpec) -> Option<&'static str> {
    let shared = &layer.mixture()?.shared.as_ref()?.gated;
    if !shared.inner.projections().into_iter().chain([&shared.down]).any(|own| own == projection) {
        return None;
    }
    match projection.role {
        Role::Gate => Some("ffn_gate_shexp"),
        Role::Up => Some("ffn_up_shexp"),
        Role::Down => Some("ffn_down_shexp"),
        _ => None,
    }
}
