//! The gated activation as a node of the graph, with parents gate and up.

use burn::tensor::Tensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use crate::autodiff::{primitive, record, wrap};
use crate::backend::KernelBackend;

#[derive(Debug)]
struct SwigluStep;

impl<B: KernelBackend<Frozen = B>> Backward<B, 2> for SwigluStep {
    /// gate, up.
    type State = (Tensor<B, 2>, Tensor<B, 2>);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let dy = wrap(gradients.consume::<B>(&ops.node));
        let (gate, up) = ops.state;
        let (dgate, dup) = B::swiglu_backward(gate, up, dy);
        for (parent, gradient) in ops.parents.into_iter().zip([dgate, dup]) {
            if let Some(parent) = parent {
                gradients.register::<B>(parent.id, primitive(gradient));
            }
        }
    }
}

/// `swiglu` of an autodiff backend.
pub(crate) fn forward<B: KernelBackend<Frozen = B>, C: CheckpointStrategy>(
    gate: Tensor<Autodiff<B, C>, 2>,
    up: Tensor<Autodiff<B, C>, 2>,
) -> Tensor<Autodiff<B, C>, 2> {
    let (gate, up) = (primitive(gate), primitive(up));
    let (inner_gate, inner_up) = (wrap::<B, 2>(gate.primitive.clone()), wrap::<B, 2>(up.primitive.clone()));
    let y = B::swiglu(inner_gate.clone(), inner_up.clone());
    record::<B, C, _, 2, 2>(SwigluStep, [gate, up], || (inner_gate, inner_up), y)
}
