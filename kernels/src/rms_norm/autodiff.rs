//! RMS normalisation as a node of the graph, with parent x.

use burn::tensor::Tensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use crate::autodiff::{primitive, record, wrap};
use crate::backend::KernelBackend;

#[derive(Debug)]
struct RmsNormStep;

impl<B: KernelBackend<Frozen = B>> Backward<B, 1> for RmsNormStep {
    /// x, weight, epsilon.
    type State = (Tensor<B, 2>, Tensor<B, 1>, f64);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let dy = wrap(gradients.consume::<B>(&ops.node));
        let ([parent], (x, weight, epsilon)) = (ops.parents, ops.state);
        if let Some(parent) = parent {
            gradients.register::<B>(parent.id, primitive(B::rms_norm_backward(x, &weight, epsilon, dy)));
        }
    }
}

/// `rms_norm` of an autodiff backend.
pub(crate) fn forward<B: KernelBackend<Frozen = B>, C: CheckpointStrategy>(
    x: Tensor<Autodiff<B, C>, 2>,
    weight: &Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<Autodiff<B, C>, 2> {
    let x = primitive(x);
    let inner = wrap::<B, 2>(x.primitive.clone());
    let y = B::rms_norm(inner.clone(), weight, epsilon);
    record::<B, C, _, 1, 2>(RmsNormStep, [x], || (inner, weight.clone(), epsilon), y)
}
