//! The linear op as one node of the graph, with parents x, A and B.

use burn::tensor::Tensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::{FrozenWeight, LinearBackward, LinearGradients, LinearWants, Lora};
use crate::autodiff::{primitive, record, wrap};
use crate::backend::KernelBackend;

#[derive(Debug)]
struct LinearStep;

/// One parent (x) without an adapter, three (x, A, B) with one.
impl<B: KernelBackend<Frozen = B>, const N: usize> Backward<B, N> for LinearStep {
    type State = LinearBackward<B>;

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let dy = wrap(gradients.consume::<B>(&ops.node));
        let LinearGradients { x, a, b } = B::linear_backward(ops.state, dy);
        for (parent, gradient) in ops.parents.into_iter().zip([x, a, b]) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<B>(parent.id, primitive(gradient));
            }
        }
    }
}

/// `linear` of an autodiff backend.
pub(crate) fn forward<B: KernelBackend<Frozen = B>, C: CheckpointStrategy>(
    x: Tensor<Autodiff<B, C>, 2>,
    weight: &FrozenWeight<B>,
    bias: Option<&Tensor<B, 1>>,
    lora: Option<&Lora<Autodiff<B, C>>>,
) -> Tensor<Autodiff<B, C>, 2> {
    let x = primitive(x);
    let inner_x = wrap::<B, 2>(x.primitive.clone());
    let Some(lora) = lora else {
        let y = B::frozen_linear(inner_x, weight, bias, None);
        let wants = LinearWants { x: true, a: false, b: false };
        let state = || LinearBackward { x: None, weight: weight.clone(), lora: None, wants };
        return record::<B, C, _, 1, 2>(LinearStep, [x], state, y);
    };
    let (a, b) = (primitive(lora.a.clone()), primitive(lora.b.clone()));
    let wants = LinearWants { x: x.is_tracked(), a: a.is_tracked(), b: b.is_tracked() };
    let inner = Lora {
        a: wrap::<B, 2>(a.primitive.clone()),
        b: wrap::<B, 2>(b.primitive.clone()),
        scaling: lora.scaling,
        dropout: lora.dropout,
    };
    let y = B::frozen_linear(inner_x.clone(), weight, bias, Some(&inner));
    let state = || LinearBackward {
        x: (wants.a || wants.b).then_some(inner_x),
        weight: weight.clone(),
        lora: Some(inner),
        wants,
    };
    record::<B, C, _, 3, 2>(LinearStep, [x, a, b], state, y)
}
