//! AdamW on an autodiff backend: on the inner tensors, outside any graph.

use burn::tensor::Tensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;

use super::{AdamWConfig, Moments};
use crate::backend::KernelBackend;

/// A parameter and its moments.
type Updated<B> = (Tensor<B, 2>, Moments<B>);

/// `adamw` of an autodiff backend.
pub(crate) fn update<B: KernelBackend<Frozen = B>, C: CheckpointStrategy>(
    parameter: Tensor<Autodiff<B, C>, 2>,
    gradient: Tensor<Autodiff<B, C>, 2>,
    moments: Moments<Autodiff<B, C>>,
    config: &AdamWConfig,
    learning_rate: f64,
    step: u64,
) -> Updated<Autodiff<B, C>> {
    let moments = Moments { first: moments.first.inner(), second: moments.second.inner() };
    let (parameter, moments) =
        B::adamw(parameter.inner(), gradient.inner(), moments, config, learning_rate, step);
    let [parameter, first, second] = [parameter, moments.first, moments.second].map(Tensor::from_inner);
    (parameter, Moments { first, second })
}
