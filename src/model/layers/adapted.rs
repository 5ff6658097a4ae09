//! Frozen projections of one input with the adapters on them, forward and backward.
//!
//! Where an adapter has magnitudes (DoRA), the op's output `u = W·x + scaling · B·A·x` is scaled by column before bias
//! and residual are added. The backward pass wants `u`, from which the output is then made again: what a projection
//! keeps is one or the other.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::column_scale::{column_scale, column_scale_backward};
use tune_kernels::linear::{Down, Linear, LinearBackward, linear, linear_backward};

use super::FrozenProjection;
use crate::adapter::dora::Scale;
use crate::adapter::projection::{Adapter, LayerGradients, Projection};

/// A projection and the adapter on it.
#[derive(Debug)]
pub struct Adapted<'a, B: KernelBackend> {
    /// The frozen weight.
    pub projection: &'a FrozenProjection<B>,
    /// The adapter, if any.
    pub adapter: Option<&'a Adapter<B>>,
}

impl<B: KernelBackend> Clone for Adapted<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: KernelBackend> Copy for Adapted<'_, B> {}

/// What the backward pass of some projections wants of their forward pass.
#[derive(Clone, Debug)]
pub struct ProjectedTape<B: KernelBackend> {
    /// Of the adapters.
    down: Option<Down<B>>,
    /// Of each projection with magnitudes, the output before they are multiplied in.
    unscaled: Vec<Option<Tensor<B, 2>>>,
}

/// The outputs of some projections.
#[derive(Clone, Debug)]
pub struct Projected<B: KernelBackend> {
    /// `[tokens, out]` of each.
    pub outputs: Vec<Tensor<B, 2>>,
    /// For the backward pass.
    pub tape: ProjectedTape<B>,
}

impl<'a, B: KernelBackend> Adapted<'a, B> {
    /// The magnitudes' scale, if the adapter has magnitudes.
    fn scale(&self) -> Option<&'a Scale<B>> {
        let (projection, adapter) = (self.projection, self.adapter?);
        let dora = adapter.dora.as_ref()?;
        Some(dora.scale(&projection.weight, || projection.row_squares().clone(), &adapter.lora))
    }

    /// As the op sees it; a bias waits for the magnitudes.
    fn linear(&self) -> Linear<'a, B> {
        let lora = self.adapter.map(|adapter| &adapter.lora);
        let is_scaled = self.adapter.is_some_and(|adapter| adapter.dora.is_some());
        let bias = self.projection.bias.as_ref().filter(|_| !is_scaled);
        Linear { weight: &self.projection.weight, bias, lora }
    }

    fn scaled(
        &self,
        unscaled: &Tensor<B, 2>,
        scale: &Scale<B>,
        residual: Option<&Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        column_scale(unscaled, &scale.factors, self.projection.bias.as_ref(), residual)
    }
}

/// Projects `x` `[tokens, in]`; a residual belongs to the one projection that it comes with.
pub fn project<B: KernelBackend, const N: usize>(
    x: &Tensor<B, 2>,
    layers: &[Adapted<'_, B>; N],
    residual: Option<&Tensor<B, 2>>,
) -> Projected<B> {
    let scales = layers.each_ref().map(Adapted::scale);
    let early = residual.filter(|_| scales.iter().all(Option::is_none));
    let mut projected = linear(x, &layers.each_ref().map(Adapted::linear), early);
    let mut unscaled = vec![None; N];
    for (index, scale) in scales.into_iter().enumerate() {
        let Some(scale) = scale else { continue };
        let output = layers[index].scaled(&projected.outputs[index], scale, residual);
        unscaled[index] = Some(std::mem::replace(&mut projected.outputs[index], output));
    }
    Projected { outputs: projected.outputs, tape: ProjectedTape { down: projected.down, unscaled } }
}

impl<B: KernelBackend> ProjectedTape<B> {
    /// `output` of the projection at `index`, unless it can be made again.
    pub fn keep<const D: usize>(&self, index: usize, output: Tensor<B, D>) -> Option<Tensor<B, D>> {
        match self.unscaled[index] {
            Some(_) => None,
            None => Some(output),
        }
    }

    /// The output of the projection at `index`, which comes without a residual: as it was kept, or made again.
    pub fn output(&self, index: usize, layer: Adapted<'_, B>, kept: Option<Tensor<B, 2>>) -> Tensor<B, 2> {
        match (kept, &self.unscaled[index], layer.scale()) {
            (Some(kept), ..) => kept,
            (None, Some(unscaled), Some(scale)) => layer.scaled(unscaled, scale, None),
            (None, ..) => unreachable!("an output is kept, or what it is made from"),
        }
    }
}

/// The gradient of `x` for upstream `dy` of each projection, if it is wanted; those of the adapters are added to
/// `gradients`.
pub fn project_backward<B: KernelBackend, const N: usize>(
    x: &Tensor<B, 2>,
    layers: [(Projection, Adapted<'_, B>); N],
    tape: ProjectedTape<B>,
    mut dy: [Tensor<B, 2>; N],
    wants_x: bool,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    for (index, unscaled) in tape.unscaled.into_iter().enumerate() {
        let (projection, layer) = layers[index];
        let (Some(unscaled), Some(scale)) = (unscaled, layer.scale()) else { continue };
        let (scaled, factors) = column_scale_backward(&unscaled, &scale.factors, &dy[index]);
        dy[index] = scaled;
        gradients.add_magnitude(projection, factors / scale.norm.clone());
    }
    let projections = layers.map(|(projection, _)| projection);
    let found = linear_backward(LinearBackward {
        x: Some(x),
        layers: &layers.map(|(_, layer)| layer.linear()),
        down: tape.down.as_ref(),
        dy: &dy,
        wants_x,
        sums: gradients.take(projections),
    });
    gradients.put(projections, found.adapters);
    found.x
}
