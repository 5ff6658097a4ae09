//! The seven linear projections of a decoder layer: their names, their place in a model, and the adapters of
//! one layer.
//!
//! Knows the spelling that Hugging Face checkpoints use; refuses to know which projections a recipe adapts
//! (`target.rs`) and where the numbers of an adapter come from (`lora.rs`).

use std::fmt;

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear::{Lora, LoraGradient};

use super::dora::Dora;

/// One of the linear projections of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// Hidden state to queries.
    Query,
    /// Hidden state to keys.
    Key,
    /// Hidden state to values.
    Value,
    /// Attention output to hidden state.
    Output,
    /// Hidden state to the gate of the feed-forward block.
    Gate,
    /// Hidden state to the values of the feed-forward block.
    Up,
    /// Feed-forward block back to hidden state.
    Down,
}

impl Projection {
    /// Every projection, in the order a layer applies them.
    pub const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The last component of the module path (`q_proj`).
    pub fn hf_name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Position in [`Self::ALL`]; also the projection's number in a dropout key.
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.hf_name())
    }
}

/// The adapter of one projection.
#[derive(Clone, Debug)]
pub struct Adapter<T: KernelBackend> {
    /// A and B.
    pub lora: Lora<T>,
    /// Magnitudes, under DoRA.
    pub dora: Option<Dora<T>>,
}

impl<T: KernelBackend> From<Lora<T>> for Adapter<T> {
    fn from(lora: Lora<T>) -> Self {
        Self { lora, dora: None }
    }
}

/// The adapters of one decoder layer; `None` where a projection is left as it is.
#[derive(Clone, Debug)]
pub struct LayerAdapters<T: KernelBackend> {
    /// On `q_proj`.
    pub query: Option<Adapter<T>>,
    /// On `k_proj`.
    pub key: Option<Adapter<T>>,
    /// On `v_proj`.
    pub value: Option<Adapter<T>>,
    /// On `o_proj`.
    pub output: Option<Adapter<T>>,
    /// On `gate_proj`.
    pub gate: Option<Adapter<T>>,
    /// On `up_proj`.
    pub up: Option<Adapter<T>>,
    /// On `down_proj`.
    pub down: Option<Adapter<T>>,
}

impl<T: KernelBackend> LayerAdapters<T> {
    /// A layer without adapters: the base model as it is.
    pub fn none() -> Self {
        Self { query: None, key: None, value: None, output: None, gate: None, up: None, down: None }
    }

    /// The adapter on one projection.
    pub fn get(&self, projection: Projection) -> Option<&Adapter<T>> {
        match projection {
            Projection::Query => self.query.as_ref(),
            Projection::Key => self.key.as_ref(),
            Projection::Value => self.value.as_ref(),
            Projection::Output => self.output.as_ref(),
            Projection::Gate => self.gate.as_ref(),
            Projection::Up => self.up.as_ref(),
            Projection::Down => self.down.as_ref(),
        }
    }

    /// The place of one projection's adapter.
    pub fn slot(&mut self, projection: Projection) -> &mut Option<Adapter<T>> {
        match projection {
            Projection::Query => &mut self.query,
            Projection::Key => &mut self.key,
            Projection::Value => &mut self.value,
            Projection::Output => &mut self.output,
            Projection::Gate => &mut self.gate,
            Projection::Up => &mut self.up,
            Projection::Down => &mut self.down,
        }
    }
}

/// The adapter gradients of one decoder layer, summed over micro-batches.
#[derive(Clone, Debug)]
pub struct LayerGradients<B: KernelBackend> {
    sums: [Option<LoraGradient<B>>; 7],
    magnitudes: [Option<Tensor<B, 2>>; 7],
}

impl<B: KernelBackend> Default for LayerGradients<B> {
    fn default() -> Self {
        Self { sums: [const { None }; 7], magnitudes: [const { None }; 7] }
    }
}

impl<B: KernelBackend> LayerGradients<B> {
    /// The gradient of one projection's adapter; `None` before the first micro-batch, and without an adapter.
    pub fn get(&self, projection: Projection) -> Option<&LoraGradient<B>> {
        self.sums[projection.index()].as_ref()
    }

    /// The gradient of one projection's magnitudes, `[1, out]`; `None` likewise.
    pub fn magnitude(&self, projection: Projection) -> Option<&Tensor<B, 2>> {
        self.magnitudes[projection.index()].as_ref()
    }

    /// Adds to the gradient of one projection's magnitudes.
    pub fn add_magnitude(&mut self, projection: Projection, gradient: Tensor<B, 2>) {
        let sum = &mut self.magnitudes[projection.index()];
        *sum = Some(match sum.take() {
            Some(sum) => sum + gradient,
            None => gradient,
        });
    }

    /// Takes sums out, to be added to.
    pub fn take<const N: usize>(&mut self, projections: [Projection; N]) -> Vec<Option<LoraGradient<B>>> {
        projections.iter().map(|projection| self.sums[projection.index()].take()).collect()
    }

    /// Puts sums back.
    pub fn put<const N: usize>(&mut self, projections: [Projection; N], sums: Vec<Option<LoraGradient<B>>>) {
        for (projection, sum) in projections.iter().zip(sums) {
            self.sums[projection.index()] = sum;
        }
    }
}

/// A projection of the model at hand, as target patterns see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Module path in the Hugging Face model (`model.layers.3.self_attn.q_proj`).
    pub path: String,
    /// Decoder layer, from 0.
    pub layer: usize,
    /// Which projection of that layer.
    pub projection: Projection,
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
}
