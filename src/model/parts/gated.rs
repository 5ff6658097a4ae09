//! The gated feed-forward block: down(activation(gate(x)) · up(x)).

use tune_kernels::gated::Activation;

use super::memory::Load;
use super::{ProjectionSpec, TensorMut};

/// A gated feed-forward block.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedSpec {
    /// Hidden state to gate and up.
    pub inner: GatedInner,
    /// What the gate goes through.
    pub activation: Activation,
    /// Their product to hidden state.
    pub down: ProjectionSpec,
}

/// The projections to gate and up.
#[derive(Clone, Debug, PartialEq)]
pub enum GatedInner {
    /// One each.
    Separate {
        /// `[intermediate, hidden]`.
        gate: ProjectionSpec,
        /// `[intermediate, hidden]`.
        up: ProjectionSpec,
    },
    /// One weight: rows of gate, then up.
    Fused(ProjectionSpec),
}

impl GatedInner {
    /// The projections by slot.
    pub fn projections(&self) -> Vec<&ProjectionSpec> {
        match self {
            Self::Separate { gate, up } => vec![gate, up],
            Self::Fused(both) => vec![both],
        }
    }
}

impl GatedSpec {
    /// The same with biases on all projections.
    #[must_use]
    pub fn biased(mut self, bias: bool) -> Self {
        match &mut self.inner {
            GatedInner::Separate { gate, up } => (gate.bias, up.bias) = (bias, bias),
            GatedInner::Fused(both) => both.bias = bias,
        }
        self.down.bias = bias;
        self
    }

    /// The projections by slot.
    pub(super) fn projections(&self) -> impl Iterator<Item = &ProjectionSpec> {
        self.inner.projections().into_iter().chain([&self.down])
    }

    /// The projections that are multiplied in one call, call by call.
    pub(super) fn calls(&self) -> [Vec<&ProjectionSpec>; 2] {
        [self.inner.projections(), vec![&self.down]]
    }

    /// Width of gate and up.
    pub fn intermediate(&self) -> usize {
        self.down.shape[1]
    }

    pub(super) fn tensors_mut(&mut self) -> Vec<TensorMut<'_>> {
        let mut tensors = match &mut self.inner {
            GatedInner::Separate { gate, up } => [gate, up].map(TensorMut::Projection).into(),
            GatedInner::Fused(both) => vec![TensorMut::Projection(both)],
        };
        tensors.push(TensorMut::Projection(&mut self.down));
        tensors
    }

    /// Bytes that the forward pass saves: gate and up; under DoRA the unscaled output.
    pub(super) fn saved(&self, load: &Load<'_>) -> u64 {
        let output = load.scaled_again(std::iter::once(&self.down));
        load.tokens * load.value() * (2 * self.intermediate() as u64 + output)
            + load.adapters(self.projections())
    }

    /// Bytes for each token of the largest moment of the backward pass: the activation and its gradient beside the packed
    /// gradient from above, or the packed gradients of gate and up beside that of their input. A GPU packs nothing, and
    /// adds the gradients of one input up in f32.
    pub(super) fn workspace(&self, load: &Load<'_>, width: u64) -> u64 {
        let (value, packed) = (load.value(), load.packed_value());
        let intermediate = self.intermediate() as u64;
        let again = load.scaled_again(self.inner.projections().into_iter());
        let stacked = match self.inner {
            GatedInner::Separate { .. } => 0,
            GatedInner::Fused(_) => 2 * intermediate,
        };
        let around = (again + stacked) * value;
        let largest = match load.on_device {
            true => 2 * intermediate * value + 8 * width,
            false => {
                let down = 2 * intermediate * value + width * packed;
                down.max(2 * intermediate * packed + width * value)
            }
        };
        around + largest
    }
}
