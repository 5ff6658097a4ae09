//! The gated short convolution: output(c · convolution(b · x)), where b, c and x are thirds of one projection.

use super::memory::Load;
use super::{ConstantSpec, ProjectionSpec, TensorMut};
use crate::model::dtype::FloatDtype;

/// A gated short convolution within each document.
#[derive(Clone, Debug, PartialEq)]
pub struct ShortConvSpec {
    /// Hidden state to b, c and x, stacked in this order.
    pub input: ProjectionSpec,
    /// The convolution's weight, `[channels, 1, size]`.
    pub conv: ConstantSpec,
    /// To hidden state.
    pub output: ProjectionSpec,
}

impl ShortConvSpec {
    /// Numbers that are convolved, for each token.
    pub fn channels(&self) -> usize {
        self.output.shape[1]
    }

    /// Tokens that the convolution reaches over.
    pub fn conv_size(&self) -> usize {
        self.conv.matrix()[1]
    }

    pub(super) fn tensors_mut(&mut self) -> Vec<TensorMut<'_>> {
        let Self { input, conv, output } = self;
        vec![TensorMut::Projection(input), TensorMut::Constant(conv), TensorMut::Projection(output)]
    }

    /// Bytes that the forward pass saves: the three thirds; under DoRA the unscaled output.
    pub(super) fn saved(&self, load: &Load<'_>) -> u64 {
        let output = load.scaled_again(std::iter::once(&self.output));
        let numbers = 3 * self.channels() as u64 + output;
        load.tokens * numbers * load.value() + load.adapters([&self.input, &self.output].into_iter())
    }

    /// Bytes for each token of the largest moment of the backward pass: the thirds apart, what is convolved, the
    /// convolution and its gradient, and the gradients of the thirds, apart and stacked.
    pub(super) fn workspace(&self, load: &Load<'_>, width: u64) -> u64 {
        let again = load.scaled_again(std::iter::once(&self.input));
        let sums = if load.on_device { 8 * width } else { 0 };
        (again + 10 * self.channels() as u64) * load.value() + sums
    }

    /// Bytes of the decoding state, whatever the number of tokens: the last ones that were convolved.
    pub(super) fn fixed_state(&self, dtype: FloatDtype) -> u64 {
        ((self.conv_size() - 1) * self.channels() * dtype.bytes()) as u64
    }
}
