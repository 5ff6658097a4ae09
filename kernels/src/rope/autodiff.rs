//! Rotary embedding as a node of the graph, with parent x.

use burn::tensor::{Int, Tensor};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::RotaryTable;
use crate::autodiff::{primitive, record, wrap};
use crate::backend::KernelBackend;

#[derive(Debug)]
struct RopeStep;

impl<B: KernelBackend<Frozen = B>> Backward<B, 1> for RopeStep {
    type State = (RotaryTable<B>, Tensor<B, 1, Int>);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let dy = wrap(gradients.consume::<B>(&ops.node));
        let ([parent], (table, position_ids)) = (ops.parents, ops.state);
        if let Some(parent) = parent {
            gradients.register::<B>(parent.id, primitive(B::rope_backward(&table, &position_ids, dy)));
        }
    }
}

/// `rope` of an autodiff backend.
pub(crate) fn forward<B: KernelBackend<Frozen = B>, C: CheckpointStrategy>(
    x: Tensor<Autodiff<B, C>, 3>,
    table: &RotaryTable<B>,
    position_ids: &Tensor<B, 1, Int>,
) -> Tensor<Autodiff<B, C>, 3> {
    let x = primitive(x);
    let y = B::rope(wrap(x.primitive.clone()), table, position_ids);
    record::<B, C, _, 1, 3>(RopeStep, [x], || (table.clone(), position_ids.clone()), y)
}
