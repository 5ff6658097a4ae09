//! The gated delta net: a recurrent state for each head in place of attention over keys, behind a short convolution.

use tune_kernels::delta_rule::DeltaHeads;
use tune_kernels::memory;

use super::memory::Load;
use super::{ConstantSpec, NormSpec, ProjectionSpec, TensorMut};
use crate::model::dtype::FloatDtype;

/// A gated delta net within each document.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaNetSpec {
    /// Numbers and widths of heads.
    pub heads: DeltaHeads,
    /// Hidden state to queries, keys and values, which the convolution mixes.
    pub mixed: ProjectionSpec,
    /// Hidden state to the gate of the output.
    pub gate: ProjectionSpec,
    /// Hidden state to the strength of each head's write.
    pub write: ProjectionSpec,
    /// Hidden state to what each head's decay follows from.
    pub decay: ProjectionSpec,
    /// The convolution's weight, `[channels, 1, size]`.
    pub conv: ConstantSpec,
    /// Logarithm of each head's rate of decay.
    pub log_rate: ConstantSpec,
    /// Added to what the decay follows from.
    pub bias: ConstantSpec,
    /// Of each head's output, before the gate.
    pub norm: NormSpec,
    /// All heads to hidden state.
    pub output: ProjectionSpec,
}

impl DeltaNetSpec {
    /// The projections of the hidden state, in the order of use.
    pub fn inner(&self) -> [&ProjectionSpec; 4] {
        [&self.mixed, &self.gate, &self.write, &self.decay]
    }

    /// Tokens that the convolution reaches over.
    pub fn conv_size(&self) -> usize {
        self.conv.matrix()[1]
    }

    pub(super) fn tensors_mut(&mut self) -> Vec<TensorMut<'_>> {
        let Self { mixed, gate, write, decay, conv, log_rate, bias, norm, output, .. } = self;
        let mut tensors: Vec<_> = [mixed, gate, write, decay].map(TensorMut::Projection).into();
        tensors.extend([conv, log_rate, bias].map(TensorMut::Constant));
        tensors.extend([TensorMut::Norm(norm), TensorMut::Projection(output)]);
        tensors
    }

    /// Numbers of a token: queries, keys and values; the values alone; one for each value head.
    fn widths(&self) -> [u64; 3] {
        let values = self.heads.values * self.heads.value_dim;
        [self.mixed.shape[0], values, self.heads.values].map(|width| width as u64)
    }

    /// Bytes that the forward pass saves: the projections' outputs and the recurrence's; under DoRA the unscaled output.
    pub(super) fn saved(&self, load: &Load<'_>) -> u64 {
        let [mixed, values, heads] = self.widths();
        let output = load.scaled_again(std::iter::once(&self.output));
        let numbers = mixed + 2 * values + 2 * heads + output;
        let adapters = self.inner().into_iter().chain([&self.output]);
        load.tokens * numbers * load.value() + load.adapters(adapters)
    }

    /// Bytes for each token of the largest moment of the backward pass: what the convolution mixed, its gradient and that
    /// of the recurrence's output; or all gradients, packed, beside that of their input. A GPU packs nothing, and holds
    /// what its sweeps leave to one another.
    pub(super) fn workspace(&self, load: &Load<'_>, width: u64) -> u64 {
        let [mixed, values, heads] = self.widths();
        let again = load.scaled_again(self.inner().into_iter());
        let recurrence = (2 * mixed + values) * load.value();
        let largest = match load.on_device {
            true => recurrence + memory::delta_rule_bytes_on_gpu(self.heads) + 8 * width,
            false => {
                let projections = (mixed + values + 2 * heads) * load.packed_value() + width * load.value();
                recurrence.max(projections)
            }
        };
        again * load.value() + largest
    }

    /// Bytes of the states of the heads that are computed at a time.
    pub(super) fn states(&self, load: &Load<'_>) -> u64 {
        if load.on_device { 0 } else { memory::delta_rule_bytes(self.heads, load.tokens) }
    }

    /// Bytes of the decoding state, whatever the number of tokens: the recurrence's, in f32, and the convolution's last
    /// tokens.
    pub(super) fn fixed_state(&self, dtype: FloatDtype) -> u64 {
        let DeltaHeads { values, key_dim, value_dim, .. } = self.heads;
        let tokens = (self.conv_size() - 1) * self.mixed.shape[0] * dtype.bytes();
        (4 * values * key_dim * value_dim + tokens) as u64
    }
}
