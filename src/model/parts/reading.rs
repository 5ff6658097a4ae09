//! Attention over the keys and values of an earlier layer: queries and an output of its own, nothing else.

use super::memory::Load;
use super::{Heads, NormSpec, ProjectionSpec, TensorMut};

/// Attention that reads keys and values which another layer computed.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadingSpec {
    /// How many, and how wide; those of the layer that it reads from.
    pub heads: Heads,
    /// Which of the shared keys and values ([`AttentionSpec::gives`](super::AttentionSpec::gives)).
    pub from: usize,
    /// `[queries · dim, hidden]`.
    pub query: ProjectionSpec,
    /// Of each head of the queries, before the rotation.
    pub norm: NormSpec,
    /// Which of the decoder's rotary positions.
    pub rotary: usize,
    /// All heads to hidden state.
    pub output: ProjectionSpec,
    /// Factor on the scores.
    pub scaling: f32,
    /// Keys a query may look back at, itself included; `None`: all of its document.
    pub window: Option<usize>,
}

impl ReadingSpec {
    pub(super) fn tensors_mut(&mut self) -> Vec<TensorMut<'_>> {
        let Self { query, norm, output, .. } = self;
        vec![TensorMut::Projection(query), TensorMut::Norm(norm), TensorMut::Projection(output)]
    }

    /// Bytes that the forward pass saves: queries, the mixed heads and ln Σ exp of the scores in f32; under DoRA the unscaled
    /// output.
    pub(super) fn saved(&self, load: &Load<'_>) -> u64 {
        let [queries, ..] = self.heads.widths().map(|width| width as u64);
        let numbers = 2 * queries + load.scaled_again(std::iter::once(&self.output));
        let adapters = load.adapters([&self.query, &self.output].into_iter());
        load.tokens * (numbers * load.value() + 4 * self.heads.queries as u64) + adapters
    }

    /// Bytes for each token of the largest moment of the backward pass: as of other attention.
    pub(super) fn workspace(&self, load: &Load<'_>, width: u64) -> u64 {
        let [queries, keys, values] = self.heads.widths().map(|width| width as u64);
        let again = load.scaled_again(std::iter::once(&self.query));
        let sums = if load.on_device { 8 * width } else { 0 };
        let copies = match load.shares_prompts {
            true => 2 * (keys + values) * load.value() + 8 * queries,
            false => 0,
        };
        (again + 2 * queries + keys + values) * load.value() + 8 * queries + sums + copies
    }
}
