//! The feed-forward block without a gate: down(function(up(x))).

use tune_kernels::activation::Function;

use super::memory::Load;
use super::{ProjectionSpec, TensorMut};

/// A feed-forward block without a gate.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainSpec {
    /// `[intermediate, hidden]`.
    pub up: ProjectionSpec,
    /// What every number goes through between.
    pub function: Function,
    /// `[hidden, intermediate]`.
    pub down: ProjectionSpec,
}

impl PlainSpec {
    /// The same with biases on both projections.
    #[must_use]
    pub fn biased(mut self, bias: bool) -> Self {
        (self.up.bias, self.down.bias) = (bias, bias);
        self
    }

    /// Width between the projections.
    pub fn intermediate(&self) -> usize {
        self.down.shape[1]
    }

    pub(super) fn tensors_mut(&mut self) -> Vec<TensorMut<'_>> {
        [&mut self.up, &mut self.down].map(TensorMut::Projection).into()
    }

    /// Bytes that the forward pass saves: up; under DoRA the unscaled output.
    pub(super) fn saved(&self, load: &Load<'_>) -> u64 {
        let output = load.scaled_again(std::iter::once(&self.down));
        let adapters = load.adapters([&self.up, &self.down].into_iter());
        load.tokens * load.value() * (self.intermediate() as u64 + output) + adapters
    }

    /// Bytes for each token of the largest moment of the backward pass: the activation and its gradient beside the packed
    /// gradient from above, or the packed gradient of up beside that of its input. A GPU packs nothing.
    pub(super) fn workspace(&self, load: &Load<'_>, width: u64) -> u64 {
        let (value, packed) = (load.value(), load.packed_value());
        let intermediate = self.intermediate() as u64;
        let again = load.scaled_again(std::iter::once(&self.up));
        let largest = match load.on_device {
            true => 2 * intermediate * value + 4 * width,
            false => {
                let down = 2 * intermediate * value + width * packed;
                down.max(intermediate * packed + width * value)
            }
        };
        again * value + largest
    }
}
