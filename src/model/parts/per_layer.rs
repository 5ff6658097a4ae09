//! Embeddings by layer: what the ids of tokens bring to each layer beside the hidden state.

use tune_kernels::gated::Activation;

use super::memory::Load;
use super::{NormSpec, ProjectionSpec, TensorMut};

/// The tables of a decoder with embeddings by layer. What layer l is given:
/// `(norm(projection(x₀))[l] + table[id][l] · √width) / √2`.
#[derive(Clone, Debug, PartialEq)]
pub struct PerLayerSpec {
    /// Rows of the table.
    pub rows: usize,
    /// Numbers that a layer is given for each token.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// The table, `[rows, layers · width]`: it stays on disk, and rows are read as they are needed.
    pub table: &'static str,
    /// The projection of embeddings, `[layers · width, hidden]`.
    pub projection: &'static str,
    /// Its norm, over `width` numbers.
    pub norm: NormSpec,
}

impl PerLayerSpec {
    /// Numbers of a token for all layers.
    pub fn numbers(&self) -> usize {
        self.layers * self.width
    }
}

/// Where a layer takes its part in: `projection(activation(gate(x)) · part)`.
#[derive(Clone, Debug, PartialEq)]
pub struct PerLayerInputSpec {
    /// The layer, whose part it takes.
    pub layer: usize,
    /// `[width, hidden]`.
    pub gate: ProjectionSpec,
    /// What the gate goes through.
    pub activation: Activation,
    /// `[hidden, width]`.
    pub projection: ProjectionSpec,
}

impl PerLayerInputSpec {
    /// Numbers that it is given for each token.
    pub fn width(&self) -> usize {
        self.gate.shape[0]
    }

    pub(super) fn tensors_mut(&mut self) -> Vec<TensorMut<'_>> {
        vec![TensorMut::Projection(&mut self.gate), TensorMut::Projection(&mut self.projection)]
    }

    /// Bytes that the forward pass saves: the gate; under DoRA the unscaled output.
    pub(super) fn saved(&self, load: &Load<'_>) -> u64 {
        let output = load.scaled_again(std::iter::once(&self.projection));
        let adapters = load.adapters([&self.gate, &self.projection].into_iter());
        load.tokens * load.value() * (self.width() as u64 + output) + adapters
    }

    /// Bytes for each token of the largest moment of the backward pass: the gate's activation, its gradient and that of the
    /// gate, and a copy of the layer's part.
    pub(super) fn workspace(&self, load: &Load<'_>, width: u64) -> u64 {
        let again = load.scaled_again(std::iter::once(&self.gate));
        let sums = if load.on_device { 8 * width } else { 0 };
        (again + 5 * self.width() as u64) * load.value() + sums
    }
}
