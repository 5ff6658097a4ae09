//! The memory of a layer: its weights, what its forward pass saves for its backward pass, and the largest moment of
//! that backward pass, each summed from its parts.

use std::iter::Sum;
use std::ops::AddAssign;

use tune_kernels::memory;

use super::{BlockSpec, BodySpec, BranchSpec, LayerSpec, LayerTensor, ProjectionSpec};
use crate::adapter::target::Target;
use crate::model::dtype::{FloatDtype, burn_dtype};
use crate::quant::spec::Spec;

/// What a layer is run on.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Tokens of the micro-batch.
    pub tokens: u64,
    /// The compute dtype.
    pub dtype: FloatDtype,
    /// How projections are stored; `None`: in the compute dtype.
    pub quantization: Option<Spec>,
    /// Whether answers share the keys and values of a prompt, which attention copies for the second one: less than once more.
    pub shares_prompts: bool,
    /// Whether a GPU computes, whose ops hold other buffers than those of the processor.
    pub on_device: bool,
    /// The adapted projections of this layer.
    pub targets: &'a [Target],
}

/// Bytes of frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// 4-bit codes.
    pub packed: u64,
    /// The scales of their blocks.
    pub scales: u64,
    /// What is stored in the compute dtype.
    pub dense: u64,
}

impl WeightBytes {
    /// All together.
    pub fn total(&self) -> u64 {
        self.packed + self.scales + self.dense
    }
}

impl AddAssign for WeightBytes {
    fn add_assign(&mut self, other: Self) {
        self.packed += other.packed;
        self.scales += other.scales;
        self.dense += other.dense;
    }
}

impl Sum for WeightBytes {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        let mut sum = Self::default();
        for part in parts {
            sum += part;
        }
        sum
    }
}

/// Bytes of the largest moment of a backward pass beyond what was saved and the gradients of adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Activations and their gradients.
    pub activations: u64,
    /// What a product holds of its weights.
    pub scratch: u64,
}

impl Workspace {
    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            activations: self.activations.max(other.activations),
            scratch: self.scratch.max(other.scratch),
        }
    }
}

impl Load<'_> {
    /// Bytes of one number in the compute dtype.
    pub fn value(&self) -> u64 {
        self.dtype.bytes() as u64
    }

    /// Bytes of one number that the processor packs for a product.
    pub(super) fn packed_value(&self) -> u64 {
        memory::packed_value_bytes(burn_dtype(self.dtype))
    }

    fn target(&self, projection: &ProjectionSpec) -> Option<&Target> {
        // Targets are sorted by slot.
        let found = self.targets.binary_search_by_key(&projection.slot, |target| target.module.slot);
        self.targets.get(found.ok()?)
    }

    /// Whether the projection has an adapter.
    pub(super) fn is_adapted(&self, projection: &ProjectionSpec) -> bool {
        self.target(projection).is_some()
    }

    /// Whether the projection's output is scaled by DoRA's magnitudes.
    pub(super) fn is_scaled(&self, projection: &ProjectionSpec) -> bool {
        self.target(projection).is_some_and(|target| target.use_dora)
    }

    /// Numbers of a token that are scaled again in the backward pass instead of being saved.
    pub(super) fn scaled_again<'p>(&self, projections: impl Iterator<Item = &'p ProjectionSpec>) -> u64 {
        projections.filter(|projection| self.is_scaled(projection)).map(|p| p.shape[0] as u64).sum()
    }

    /// Bytes that the adapters of some projections save: the output of each A, and on a GPU A and B in the compute
    /// dtype, as products read them.
    pub(super) fn adapters<'p>(&self, projections: impl Iterator<Item = &'p ProjectionSpec>) -> u64 {
        self.adapters_over(self.tokens, projections)
    }

    /// [`Self::adapters`] that each see `rows` rows.
    pub(super) fn adapters_over<'p>(
        &self,
        rows: u64,
        projections: impl Iterator<Item = &'p ProjectionSpec>,
    ) -> u64 {
        let of = |target: &Target| {
            let (rank, module) = (target.rank as u64, &target.module);
            let operands = rank * (module.in_features + module.out_features) as u64;
            rows * rank + if self.on_device { operands } else { 0 }
        };
        self.value() * projections.filter_map(|projection| self.target(projection)).map(of).sum::<u64>()
    }
}

impl LayerSpec {
    /// Bytes of its weights.
    pub fn weights(&self, quantization: Option<Spec>, dtype: FloatDtype) -> WeightBytes {
        let of = |tensor: &LayerTensor| match tensor {
            LayerTensor::Norm(norm) => {
                WeightBytes { dense: (norm.elements() * dtype.bytes()) as u64, ..WeightBytes::default() }
            }
            LayerTensor::Projection(projection) => projection.weights(quantization, dtype),
            LayerTensor::Constant(constant) => constant.weights(dtype),
        };
        self.tensors.iter().map(of).sum()
    }

    /// Bytes that its forward pass saves for its backward pass.
    pub fn saved(&self, load: &Load<'_>) -> u64 {
        let hidden = load.tokens * load.value() * self.width as u64;
        let of = |branch: &BranchSpec| {
            // A norm behind the body sees its output again; so does what computes DoRA's magnitudes.
            let output = if branch.post.is_some() { hidden } else { 0 };
            output + branch.body.saved(load, self.width as u64)
        };
        // A norm of the sum sees it again.
        let sum = |block: &BlockSpec| if block.post.is_some() { 2 * hidden } else { hidden };
        let block = |block: &BlockSpec| sum(block) + block.branches.iter().map(of).sum::<u64>();
        self.blocks.iter().map(block).sum()
    }

    /// The largest moment of its backward pass.
    pub fn workspace(&self, load: &Load<'_>) -> Workspace {
        let hidden = load.tokens * load.value() * self.width as u64;
        let mut largest = Workspace::default();
        for block in &self.blocks {
            for branch in &block.branches {
                // The gradient that comes from above, and the output of the norm.
                let extra = u64::from(branch.post.is_some())
                    + u64::from(block.scale != 1.0)
                    + u64::from(block.post.is_some());
                let around = (2 + extra) * hidden;
                let activations = around + load.tokens * branch.body.workspace(load, self.width as u64);
                let scratch = branch.body.scratch(load, self.width as u64).max(branch.body.states(load));
                largest = largest.max(Workspace { activations, scratch });
            }
        }
        largest
    }

    /// Bytes of the decoding state of each token.
    pub fn state(&self, dtype: FloatDtype) -> u64 {
        self.bodies().map(|body| body.state(dtype)).sum()
    }

    /// Bytes of the decoding state that does not grow with the tokens.
    pub fn fixed_state(&self, dtype: FloatDtype) -> u64 {
        self.bodies().map(|body| body.fixed_state(dtype)).sum()
    }
}

impl BodySpec {
    fn saved(&self, load: &Load<'_>, width: u64) -> u64 {
        match self {
            Self::Attention(attention) => attention.saved(load),
            Self::Reading(reading) => reading.saved(load),
            Self::DeltaNet(delta_net) => delta_net.saved(load),
            Self::ShortConv(conv) => conv.saved(load),
            Self::Gated(gated) => gated.saved(load),
            Self::Mixture(mixture) => mixture.saved(load, width),
            Self::Plain(plain) => plain.saved(load),
            Self::PerLayerInput(input) => input.saved(load),
        }
    }

    /// Bytes for each token.
    fn workspace(&self, load: &Load<'_>, width: u64) -> u64 {
        match self {
            Self::Attention(attention) => attention.workspace(load, width),
            Self::Reading(reading) => reading.workspace(load, width),
            Self::DeltaNet(delta_net) => delta_net.workspace(load, width),
            Self::ShortConv(conv) => conv.workspace(load, width),
            Self::Gated(gated) => gated.workspace(load, width),
            Self::Mixture(mixture) => mixture.workspace(load, width),
            Self::Plain(plain) => plain.workspace(load, width),
            Self::PerLayerInput(input) => input.workspace(load, width),
        }
    }

    /// The projections that are multiplied in one call, call by call.
    fn calls(&self) -> Vec<Vec<&ProjectionSpec>> {
        match self {
            Self::Attention(attention) => vec![attention.inner.projections(), vec![&attention.output]],
            Self::Reading(reading) => vec![vec![&reading.query], vec![&reading.output]],
            Self::DeltaNet(delta_net) => vec![delta_net.inner().to_vec(), vec![&delta_net.output]],
            Self::ShortConv(conv) => vec![vec![&conv.input], vec![&conv.output]],
            Self::Gated(gated) => gated.calls().into(),
            Self::Mixture(mixture) => mixture.calls(),
            Self::Plain(plain) => vec![vec![&plain.up], vec![&plain.down]],
            Self::PerLayerInput(input) => vec![vec![&input.gate], vec![&input.projection]],
        }
    }

    fn scratch(&self, load: &Load<'_>, width: u64) -> u64 {
        let packed = match self {
            Self::Mixture(mixture) => mixture.packed(load, width),
            _ => 0,
        };
        packed + self.unpacked(load)
    }

    /// What products hold of weights in 4 bits.
    fn unpacked(&self, load: &Load<'_>) -> u64 {
        let calls = self.calls();
        let is_packed = |projection: &&&ProjectionSpec| projection.blocks(load.quantization).is_some();
        if load.on_device {
            // A weight is dequantized as a whole.
            let packed = calls.iter().flatten().filter(is_packed);
            let largest = packed.map(|projection| projection.elements()).max();
            return memory::weight_scratch_on_gpu(largest.unwrap_or(0), burn_dtype(load.dtype));
        }
        // The scales of a call's blocks, in f32.
        let scales = |projection: &&ProjectionSpec| match projection.blocks(load.quantization) {
            Some(Spec::Nf4 { block_size, .. }) => 4 * projection.elements() / block_size as u64,
            None => 0,
        };
        calls.iter().map(|call| call.iter().map(scales).sum()).max().unwrap_or(0)
    }

    fn state(&self, dtype: FloatDtype) -> u64 {
        match self {
            Self::Attention(attention) => attention.state(dtype),
            Self::Reading(_) | Self::DeltaNet(_) | Self::ShortConv(_) => 0,
            Self::Gated(_) | Self::Mixture(_) | Self::Plain(_) | Self::PerLayerInput(_) => 0,
        }
    }

    fn fixed_state(&self, dtype: FloatDtype) -> u64 {
        match self {
            Self::DeltaNet(delta_net) => delta_net.fixed_state(dtype),
            Self::ShortConv(conv) => conv.fixed_state(dtype),
            Self::Attention(_) | Self::Reading(_) => 0,
            Self::Gated(_) | Self::Mixture(_) | Self::Plain(_) | Self::PerLayerInput(_) => 0,
        }
    }

    /// Bytes of recurrent states that are computed again in the backward pass.
    fn states(&self, load: &Load<'_>) -> u64 {
        match self {
            Self::DeltaNet(delta_net) => delta_net.states(load),
            _ => 0,
        }
    }
}
