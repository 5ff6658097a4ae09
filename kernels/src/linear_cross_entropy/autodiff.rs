//! Head and loss as a node of the graph, with parent hidden; its gradient is made in the forward.

use burn::tensor::{Int, Tensor};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use crate::autodiff::{primitive, record, wrap};
use crate::backend::KernelBackend;
use crate::linear::FrozenWeight;

#[derive(Debug)]
struct LossStep;

impl<B: KernelBackend<Frozen = B>> Backward<B, 1> for LossStep {
    /// The gradient of hidden for upstream 1.
    type State = Tensor<B, 2>;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let upstream = wrap::<B, 1>(gradients.consume::<B>(&ops.node));
        let ([parent], gradient) = (ops.parents, ops.state);
        if let Some(parent) = parent {
            let upstream = upstream.cast(gradient.dtype()).reshape([1, 1]);
            gradients.register::<B>(parent.id, primitive(gradient * upstream));
        }
    }
}

/// `linear_cross_entropy` of an autodiff backend.
pub(crate) fn forward<B: KernelBackend<Frozen = B>, C: CheckpointStrategy>(
    hidden: Tensor<Autodiff<B, C>, 2>,
    head: &FrozenWeight<B>,
    targets: &Tensor<B, 1, Int>,
) -> Tensor<Autodiff<B, C>, 1> {
    let hidden = primitive(hidden);
    let inner = wrap::<B, 2>(hidden.primitive.clone());
    if !hidden.is_tracked() {
        return Tensor::from_inner(B::linear_cross_entropy(inner, head, targets));
    }
    let (loss, gradient) = B::linear_cross_entropy_with_gradient(inner, head, targets);
    record::<B, C, _, 1, 1>(LossStep, [hidden], || gradient, loss)
}
