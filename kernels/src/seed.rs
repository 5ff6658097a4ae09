//! Running backward from a given upstream gradient: what lets the trainer drive the layers one by one.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorPrimitive};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use crate::autodiff::{primitive, record};

/// A node whose gradient is the state it was made with, whatever comes from above.
#[derive(Debug)]
struct Seed;

impl<B: Backend> Backward<B, 1> for Seed {
    type State = <B as burn::tensor::backend::BackendTypes>::FloatTensorPrimitive;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        gradients.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            gradients.register::<B>(parent.id, ops.state);
        }
    }
}

/// Runs the backward pass of `y` with the upstream gradient `dy`, and drops the graph. If no input of `y` is
/// tracked, the result holds no gradient.
///
/// # Panics
/// If `dy` has another shape than `y`.
pub fn backward_with<B: Backend, C: CheckpointStrategy, const D: usize>(
    y: Tensor<Autodiff<B, C>, D>,
    dy: Tensor<B, D>,
) -> Gradients {
    assert_eq!(y.dims(), dy.dims(), "backward_with: the upstream gradient has another shape");
    // burn starts from ones in the root's shape: a single element is enough, and the seed replaces it.
    let one = Tensor::<B, 1>::zeros([1], &dy.device());
    let TensorPrimitive::Float(y) = y.into_primitive() else {
        unreachable!("no float tensor of this crate is quantized");
    };
    let root: Tensor<Autodiff<B, C>, 1> = record::<B, C, _, 1, 1>(Seed, [y], || primitive(dy), one);
    root.backward()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    type A = Autodiff<Flex>;

    #[test]
    fn gradient_is_the_upstream_times_the_derivative() {
        let device = Default::default();
        let x = Tensor::<A, 2>::from_data([[1.0, 2.0], [3.0, 4.0]], &device).require_grad();
        let dy = Tensor::<Flex, 2>::from_data([[1.0, -1.0], [0.5, 0.0]], &device);
        let gradients = backward_with(x.clone() * x.clone(), dy);
        let dx = x.grad(&gradients).expect("tracked").into_data();
        dx.assert_eq(&burn::tensor::TensorData::from([[2.0f32, -4.0], [3.0, 0.0]]), true);
    }

    #[test]
    fn an_untracked_tensor_has_no_gradient() {
        let device = Default::default();
        let x = Tensor::<A, 2>::ones([2, 2], &device);
        let gradients = backward_with(x.clone() * 2.0, Tensor::<Flex, 2>::ones([2, 2], &device));
        assert!(x.grad(&gradients).is_none());
    }
}
