//! Grouped-query self-attention with rotary positions: heads, projections, norms over heads, window.

use tune_kernels::rms_norm::RmsNorm;

use super::memory::Load;
use super::{ConstantSpec, NormSpec, ProjectionSpec, TensorMut};
use crate::model::dtype::FloatDtype;

/// Self-attention within each document.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// How many, and how wide.
    pub heads: Heads,
    /// Hidden state to queries, keys and values.
    pub inner: Inner,
    /// Norms of queries and keys.
    pub head_norms: Option<HeadNorms>,
    /// Norm of each head's queries and keys without a weight, ahead of the rotation, in place of `head_norms`.
    pub bare_head_norm: Option<RmsNorm>,
    /// What gives the gate of the output, which a sigmoid follows.
    pub output_gate: Option<OutputGate>,
    /// The number under which later layers read its keys and values, where some do.
    pub gives: Option<usize>,
    /// Norm of each head's values, without a weight.
    pub value_norm: Option<RmsNorm>,
    /// Which of the decoder's rotary positions; `None`: positions leave no mark on queries and keys.
    pub rotary: Option<usize>,
    /// All heads to hidden state.
    pub output: ProjectionSpec,
    /// Factor on the scores.
    pub scaling: f32,
    /// Keys a query may look back at, itself included; `None`: all of its document.
    pub window: Option<usize>,
    /// What scores are bounded by, smoothly.
    pub soft_cap: Option<f32>,
    /// A score for each query head, `[queries]`, of which no value comes: it takes its share of every softmax.
    pub sinks: Option<ConstantSpec>,
}

/// Numbers and width of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Width of one head; even.
    pub dim: usize,
}

impl Heads {
    /// Numbers in a token's queries, keys and values.
    pub fn widths(&self) -> [usize; 3] {
        [self.queries, self.keys, self.keys].map(|heads| heads * self.dim)
    }
}

/// The projections to queries, keys and values.
#[derive(Clone, Debug, PartialEq)]
pub enum Inner {
    /// One each.
    Separate {
        /// `[queries · dim, hidden]`.
        query: ProjectionSpec,
        /// `[keys · dim, hidden]`.
        key: ProjectionSpec,
        /// `[keys · dim, hidden]`.
        value: ProjectionSpec,
    },
    /// Values are what keys are before their norm, which there has to be, ahead of the rotation.
    SharedKey {
        /// `[queries · dim, hidden]`.
        query: ProjectionSpec,
        /// `[keys · dim, hidden]`.
        key: ProjectionSpec,
    },
    /// One weight: rows of queries, then keys, then values.
    Fused(ProjectionSpec),
    /// One weight: of each head the rows of queries, then keys, then values; there are as many of each.
    ByHead(ProjectionSpec),
}

/// What gives the gate of the output.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputGate {
    /// The query projection, as the second half of every head.
    InQuery,
    /// A projection of its own, `[queries · dim, hidden]`.
    Own(ProjectionSpec),
}

impl OutputGate {
    fn own(&self) -> Option<&ProjectionSpec> {
        match self {
            Self::InQuery => None,
            Self::Own(projection) => Some(projection),
        }
    }
}

impl Inner {
    /// The projections by slot.
    pub fn projections(&self) -> Vec<&ProjectionSpec> {
        match self {
            Self::Separate { query, key, value } => vec![query, key, value],
            Self::SharedKey { query, key } => vec![query, key],
            Self::Fused(all) | Self::ByHead(all) => vec![all],
        }
    }
}

/// Norms of queries and of keys, over single heads or all heads of a token, as they are wide.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadNorms {
    /// Of queries.
    pub query: NormSpec,
    /// Of keys.
    pub key: NormSpec,
    /// Whether the rotation comes first.
    pub follow_rotation: bool,
}

impl AttentionSpec {
    /// The same with biases on queries, keys and values, and on the output.
    #[must_use]
    pub fn biased(mut self, inner: bool, output: bool) -> Self {
        match &mut self.inner {
            Inner::Separate { query, key, value } => {
                for projection in [query, key, value] {
                    projection.bias = inner;
                }
            }
            Inner::SharedKey { query, key } => (query.bias, key.bias) = (inner, inner),
            Inner::Fused(all) | Inner::ByHead(all) => all.bias = inner,
        }
        self.output.bias = output;
        self
    }

    /// The projections of the block's input: those to queries, keys and values, then that to the gate.
    pub fn input_projections(&self) -> Vec<&ProjectionSpec> {
        let mut projections = self.inner.projections();
        projections.extend(self.output_gate.as_ref().and_then(OutputGate::own));
        projections
    }

    pub(super) fn tensors_mut(&mut self) -> Vec<TensorMut<'_>> {
        let Self { inner, head_norms, output_gate, output, sinks, .. } = self;
        let mut tensors = match inner {
            Inner::Separate { query, key, value } => [query, key, value].map(TensorMut::Projection).into(),
            Inner::SharedKey { query, key } => [query, key].map(TensorMut::Projection).into(),
            Inner::Fused(all) | Inner::ByHead(all) => vec![TensorMut::Projection(all)],
        };
        if let Some(HeadNorms { query, key, .. }) = head_norms {
            tensors.extend([query, key].map(TensorMut::Norm));
        }
        tensors.extend(sinks.as_mut().map(TensorMut::Constant));
        if let Some(OutputGate::Own(gate)) = output_gate {
            tensors.push(TensorMut::Projection(gate));
        }
        tensors.push(TensorMut::Projection(output));
        tensors
    }

    /// Bytes that the forward pass saves: queries, keys, values, the mixed heads and ln Σ exp of the scores in f32;
    /// under DoRA the unscaled output.
    pub(super) fn saved(&self, load: &Load<'_>) -> u64 {
        let [queries, keys, values] = self.heads.widths().map(|width| width as u64);
        let output = load.scaled_again(std::iter::once(&self.output));
        let gate = if self.output_gate.is_some() { queries } else { 0 };
        let numbers = 2 * queries + keys + values + gate + output;
        let adapters = self.input_projections().into_iter().chain([&self.output]);
        load.tokens * (numbers * load.value() + 4 * self.heads.queries as u64) + load.adapters(adapters)
    }

    /// Bytes for each token of the largest moment of the backward pass: gradients of queries, keys and values, those of
    /// keys and values in f32 for each query head; under DoRA the outputs that are scaled again. A GPU adds the
    /// gradients of one input up in f32. Keys and values of a shared prompt are there twice.
    pub(super) fn workspace(&self, load: &Load<'_>, width: u64) -> u64 {
        let [queries, keys, values] = self.heads.widths().map(|width| width as u64);
        let again = load.scaled_again(self.input_projections().into_iter());
        let stacked = match self.inner {
            Inner::Separate { .. } | Inner::SharedKey { .. } => 0,
            Inner::Fused(_) | Inner::ByHead(_) => queries + keys + values,
        };
        // The gradient of the gate; joined with that of queries where one projection gives both.
        let gates = match self.output_gate {
            None => 0,
            Some(OutputGate::InQuery) => 3 * queries,
            Some(OutputGate::Own(_)) => queries,
        };
        let sums = if load.on_device { 8 * width } else { 0 };
        let copies = match load.shares_prompts {
            true => 2 * (keys + values) * load.value() + 8 * queries,
            false => 0,
        };
        (again + stacked + gates + 2 * queries + keys + values) * load.value() + 8 * queries + sums + copies
    }

    /// Bytes of a token's keys and values.
    pub(super) fn state(&self, dtype: FloatDtype) -> u64 {
        let [_, keys, values] = self.heads.widths();
        ((keys + values) * dtype.bytes()) as u64
    }
}
