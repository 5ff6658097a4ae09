//! The mixture of experts: Σ over the chosen experts of weight · expert(x), and beside it an expert that every token passes.
//!
//! ```text
//! y = Σₑ wₑ(x) · expertₑ(x)  +  [σ(x · g)] · shared(x)
//! ```
//!
//! Experts are gated feed-forward blocks of one shape, each with projections of its own. The router is a frozen tensor and
//! no projection: it is neither quantized nor adapted.

use tune_kernels::memory;
use tune_kernels::rms_norm::RmsNorm;
use tune_kernels::router::Router;

use super::memory::Load;
use super::{ConstantSpec, GatedSpec, NormSpec, ProjectionSpec, TensorMut};

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MixtureSpec {
    /// Hidden state to a logit for each expert, `[experts, hidden]`.
    pub gate: ConstantSpec,
    /// Added to the logits, `[experts]`.
    pub bias: Option<ConstantSpec>,
    /// How experts are chosen and weighed.
    pub router: Router,
    /// The experts, all of one shape.
    pub experts: Vec<GatedSpec>,
    /// An expert that every token passes.
    pub shared: Option<SharedExpertSpec>,
    /// What experts and router are given, where the mixture is given the residual itself; else both are given its input.
    pub inputs: Option<MixtureInputs>,
    /// Multiplies the weight of each expert, `[experts]`.
    pub factors: Option<ConstantSpec>,
    /// Whether rows of gate and up take turns where a parameter holds both, of all experts.
    pub alternates: bool,
}

/// What a mixture makes of the residual.
#[derive(Clone, Debug, PartialEq)]
pub struct MixtureInputs {
    /// For its experts.
    pub experts: NormSpec,
    /// The norm for its router, and the weight of that, `[hidden]`.
    pub router: (RmsNorm, ConstantSpec),
    /// Multiplies what the router is given.
    pub factor: f32,
}

/// An expert that every token passes.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedExpertSpec {
    /// The expert.
    pub gated: GatedSpec,
    /// `[1, hidden]`: the expert's output is multiplied by the sigmoid of its product with the hidden state.
    pub gate: Option<ConstantSpec>,
}

impl MixtureSpec {
    /// Width of gate and up of each expert.
    pub fn intermediate(&self) -> usize {
        self.experts.first().map_or(0, GatedSpec::intermediate)
    }

    /// So many tokens reach less than half of the experts; 0 where their biases are needed together.
    pub fn few_tokens(&self) -> usize {
        let has_biases = self.routed().any(|projection| projection.bias);
        if has_biases { 0 } else { self.experts.len() / (2 * self.router.used.max(1)) }
    }

    /// The projections of the experts alone.
    fn routed(&self) -> impl Iterator<Item = &ProjectionSpec> {
        self.experts.iter().flat_map(GatedSpec::projections)
    }

    /// Elements of the routed experts that a token is not multiplied with.
    pub(super) fn idle_elements(&self) -> u64 {
        let all: u64 = self.routed().map(ProjectionSpec::elements).sum();
        let experts = self.experts.len().max(1) as u64;
        all / experts * (experts - self.router.used as u64)
    }

    /// The expert of every token comes first: its slots are as few as those of a layer without experts.
    pub(super) fn tensors_mut(&mut self) -> Vec<TensorMut<'_>> {
        let mut tensors = vec![TensorMut::Constant(&mut self.gate)];
        tensors.extend(self.bias.as_mut().map(TensorMut::Constant));
        if let Some(MixtureInputs { experts, router: (_, weight), .. }) = &mut self.inputs {
            tensors.extend([TensorMut::Norm(experts), TensorMut::Constant(weight)]);
        }
        tensors.extend(self.factors.as_mut().map(TensorMut::Constant));
        if let Some(SharedExpertSpec { gated, gate }) = &mut self.shared {
            tensors.extend(gate.as_mut().map(TensorMut::Constant));
            tensors.extend(gated.tensors_mut());
        }
        tensors.extend(self.experts.iter_mut().flat_map(GatedSpec::tensors_mut));
        tensors
    }

    /// The projections that are multiplied in one call, call by call; experts are alike.
    pub(super) fn calls(&self) -> Vec<Vec<&ProjectionSpec>> {
        let shared = self.shared.as_ref().map(|shared| &shared.gated);
        self.experts.first().into_iter().chain(shared).flat_map(GatedSpec::calls).collect()
    }

    /// Rows that experts compute, for each token.
    fn used(&self) -> u64 {
        self.router.used as u64
    }

    /// Bytes that the forward pass saves: gate and up of the chosen experts, their weights, and the router's logits; what
    /// the shared expert saves, and its output where a gate multiplies it.
    pub(super) fn saved(&self, load: &Load<'_>, width: u64) -> u64 {
        let numbers = 2 * self.used() * self.intermediate() as u64 + self.gate.matrix()[0] as u64;
        let routed = load.tokens * (numbers * load.value() + 4 * self.used());
        // Each adapter sees the rows of its expert alone.
        let adapters =
            load.adapters_over(self.used() * load.tokens / self.experts.len().max(1) as u64, self.routed());
        let shared = self.shared.as_ref().map_or(0, |SharedExpertSpec { gated, gate }| {
            let output = if gate.is_some() { load.tokens * width * load.value() } else { 0 };
            gated.saved(load) + output
        });
        routed + adapters + shared
    }

    /// Bytes for each token of the largest moment of the backward pass: the gradients that come from above and go to the
    /// input, a row for each chosen expert, beside the activation and its gradient or the gradients of gate and up.
    pub(super) fn workspace(&self, load: &Load<'_>, width: u64) -> u64 {
        let value = load.value();
        let (rows, activations) = (self.used() * width, 2 * self.used() * self.intermediate() as u64);
        let adapted = self.routed().any(|projection| load.is_adapted(projection));
        let inputs = if adapted { rows } else { 0 };
        // With adapters a GPU joins the parts of the experts, which are held until then.
        let joined = if adapted && load.on_device { rows } else { 0 };
        let routed = (rows + activations + inputs + joined) * value;
        let shared =
            self.shared.as_ref().map_or(0, |shared| shared.gated.workspace(load, width) + 2 * width * value);
        // What experts and router are given, and the gradient of one.
        let given = if self.inputs.is_some() { 3 * width * value } else { 0 };
        routed.max(shared) + width * value + given
    }

    /// Bytes of a product's packed operand: the rows of one expert, which may be all.
    pub(super) fn packed(&self, load: &Load<'_>, width: u64) -> u64 {
        if load.on_device {
            return 0;
        }
        let packed = memory::packed_value_bytes(crate::model::dtype::burn_dtype(load.dtype));
        load.tokens * packed * width.max(2 * self.intermediate() as u64)
    }
}
