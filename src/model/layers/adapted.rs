//! Frozen projections of one input with the adapters on them, forward and backward.
//!
//! Where an adapter has magnitudes (DoRA), the op's output `u = W·x + scaling · B·A·x` is scaled by column before bias
//! and residual are added. The backward pass needs `u`, and scales it again where it needs the output too: a tape saves
//! one or the other.

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::column_scale::{column_scale, column_scale_backward};
use tune_kernels::linear::{Down, Linear, LinearBackward, linear, linear_backward, linear_down};

use super::FrozenProjection;
use crate::adapter::dora::Scale;
use crate::adapter::projection::{Adapter, LayerGradients, Slot};

/// A projection and the adapter on it.
#[derive(Debug)]
pub struct Adapted<'a, B: KernelBackend> {
    /// The frozen weight.
    pub projection: &'a FrozenProjection<B>,
    /// The adapter, if any.
    pub adapter: Option<&'a Adapter<B>>,
    /// The projection's place in its layer.
    pub slot: Slot,
}

impl<B: KernelBackend> Clone for Adapted<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: KernelBackend> Copy for Adapted<'_, B> {}

/// What the forward pass of some projections saves for their backward pass.
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

    /// As the op takes it; a bias is added after the magnitudes.
    pub(super) fn linear(&self) -> Linear<'a, B> {
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
pub fn project<B: KernelBackend>(
    x: &Tensor<B, 2>,
    layers: &[Adapted<'_, B>],
    residual: Option<&Tensor<B, 2>>,
) -> Projected<B> {
    let scales: Vec<_> = layers.iter().map(Adapted::scale).collect();
    let early = residual.filter(|_| scales.iter().all(Option::is_none));
    let mut projected = linear(x, &layers.iter().map(Adapted::linear).collect::<Vec<_>>(), early);
    let mut unscaled = vec![None; layers.len()];
    for (index, scale) in scales.into_iter().enumerate() {
        let Some(scale) = scale else { continue };
        let output = layers[index].scaled(&projected.outputs[index], scale, residual);
        unscaled[index] = Some(std::mem::replace(&mut projected.outputs[index], output));
    }
    Projected { outputs: projected.outputs, tape: ProjectedTape { down: projected.down, unscaled } }
}

/// [`project`] for a number of projections that is known, without a residual.
pub fn project_each<B: KernelBackend, const N: usize>(
    x: &Tensor<B, 2>,
    layers: &[Adapted<'_, B>; N],
) -> ([Tensor<B, 2>; N], ProjectedTape<B>) {
    let Projected { outputs, tape } = project(x, layers, None);
    let Ok(outputs) = outputs.try_into() else { unreachable!("each projection has an output") };
    (outputs, tape)
}

/// What [`project`] saves, without its outputs: no product with a weight is computed, unless an adapter has magnitudes.
pub fn project_tape<B: KernelBackend>(x: &Tensor<B, 2>, layers: &[Adapted<'_, B>]) -> ProjectedTape<B> {
    let is_scaled: Vec<bool> = layers.iter().map(|layer| layer.scale().is_some()).collect();
    let linears: Vec<_> = layers.iter().map(Adapted::linear).collect();
    if !is_scaled.contains(&true) {
        return ProjectedTape { down: linear_down(x, &linears), unscaled: vec![None; layers.len()] };
    }
    let projected = linear(x, &linears, None);
    let outputs = projected.outputs.into_iter().zip(is_scaled);
    let unscaled = outputs.map(|(output, is_scaled)| is_scaled.then_some(output)).collect();
    ProjectedTape { down: projected.down, unscaled }
}

impl<B: KernelBackend> ProjectedTape<B> {
    /// What the tape of a block saves of the output of the projection at `index`: `None` where the output follows from
    /// the unscaled one.
    pub fn saved<const D: usize>(&self, index: usize, output: Tensor<B, D>) -> Option<Tensor<B, D>> {
        match self.unscaled[index] {
            Some(_) => None,
            None => Some(output),
        }
    }

    /// The output of the projection at `index`: what [`Self::saved`] kept, else the unscaled one scaled again.
    pub fn output(
        &self,
        index: usize,
        saved: Option<Tensor<B, 2>>,
        layers: &[Adapted<'_, B>],
    ) -> Tensor<B, 2> {
        let output = saved.or_else(|| self.scaled_again(index, layers));
        output.unwrap_or_else(|| unreachable!("an output is saved, or scaled again"))
    }

    /// The outputs of the projections with magnitudes, scaled again; `None` for the others.
    pub fn all_scaled_again(&self, layers: &[Adapted<'_, B>]) -> Vec<Option<Tensor<B, 2>>> {
        (0..layers.len()).map(|index| self.scaled_again(index, layers)).collect()
    }

    fn scaled_again(&self, index: usize, layers: &[Adapted<'_, B>]) -> Option<Tensor<B, 2>> {
        Some(layers[index].scaled(self.unscaled[index].as_ref()?, layers[index].scale()?, None))
    }
}

/// dL/dx of one projection for the gradient `dy` of its output; adds the gradients of its adapter to `gradients`.
pub fn project_backward_through<B: KernelBackend>(
    x: &Tensor<B, 2>,
    layer: Adapted<'_, B>,
    tape: ProjectedTape<B>,
    dy: &Tensor<B, 2>,
    gradients: &mut LayerGradients<B>,
) -> Tensor<B, 2> {
    let found = project_backward(x, &[layer], tape, vec![dy.clone()], true, gradients);
    found.unwrap_or_else(|| unreachable!("the gradient was asked for"))
}

/// Returns dL/dx for upstream gradients `dy` of each projection, or `None` if `wants_x` is false; adds the gradients of
/// the adapters to `gradients`.
pub fn project_backward<B: KernelBackend>(
    x: &Tensor<B, 2>,
    layers: &[Adapted<'_, B>],
    tape: ProjectedTape<B>,
    mut dy: Vec<Tensor<B, 2>>,
    wants_x: bool,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    for (index, unscaled) in tape.unscaled.into_iter().enumerate() {
        let layer = layers[index];
        let (Some(unscaled), Some(scale)) = (unscaled, layer.scale()) else { continue };
        let (scaled, factors) = column_scale_backward(&unscaled, &scale.factors, &dy[index]);
        dy[index] = scaled;
        gradients.add_magnitude(layer.slot, factors / scale.norm.clone());
    }
    let slots: Vec<Slot> = layers.iter().map(|layer| layer.slot).collect();
    let found = linear_backward(LinearBackward {
        x: Some(x),
        layers: &layers.iter().map(Adapted::linear).collect::<Vec<_>>(),
        down: tape.down.as_ref(),
        dy: &dy,
        wants_x,
        sums: gradients.take(&slots),
    });
    gradients.put(&slots, found.adapters);
    found.x
}
