//! Attention as a node of the graph, with parents q, k and v.

use burn::tensor::Tensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::{AttentionBackward, AttentionOptions};
use crate::autodiff::{primitive, record, wrap};
use crate::backend::KernelBackend;

#[derive(Debug)]
struct AttentionStep;

impl<B: KernelBackend<Frozen = B>> Backward<B, 3> for AttentionStep {
    type State = AttentionBackward<B>;

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let dy = wrap(gradients.consume::<B>(&ops.node));
        let results = B::attention_backward(ops.state, dy);
        for (parent, gradient) in ops.parents.into_iter().zip(results) {
            if let Some(parent) = parent {
                gradients.register::<B>(parent.id, primitive(gradient));
            }
        }
    }
}

/// `attention` of an autodiff backend.
pub(crate) fn forward<B: KernelBackend<Frozen = B>, C: CheckpointStrategy>(
    q: Tensor<Autodiff<B, C>, 3>,
    k: Tensor<Autodiff<B, C>, 3>,
    v: Tensor<Autodiff<B, C>, 3>,
    options: &AttentionOptions,
) -> Tensor<Autodiff<B, C>, 3> {
    let parents = [primitive(q), primitive(k), primitive(v)];
    let [q, k, v] = [0, 1, 2].map(|i: usize| wrap::<B, 3>(parents[i].primitive.clone()));
    let (output, log_sum_exp) = B::attention_with_log_sum_exp(q.clone(), k.clone(), v.clone(), options);
    let y = output.clone();
    let state = || AttentionBackward { q, k, v, output, log_sum_exp, options: options.clone() };
    record::<B, C, _, 3, 3>(AttentionStep, parents, state, y)
}
