//! A norm with its weight and bias.

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::layer_norm::{layer_norm, layer_norm_backward};
use tune_kernels::rms_norm::{rms_norm, rms_norm_backward, rms_norm_onto};

use crate::model::parts::NormSpec;
use crate::model::parts::norm::NormKind;

/// The tensors of a norm. Cloning shares them.
#[derive(Clone, Debug)]
pub struct NormTensors<B: KernelBackend> {
    /// `[width]`.
    pub weight: Tensor<B, 1>,
    /// `[width]`.
    pub bias: Option<Tensor<B, 1>>,
}

impl<B: KernelBackend> NormTensors<B> {
    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor<B, 1>| tensor.dims()[0] * tensor.dtype().size();
        bytes(&self.weight) + self.bias.as_ref().map_or(0, bytes)
    }
}

/// A norm and its tensors.
#[derive(Debug)]
pub struct Norm<'a, B: KernelBackend> {
    /// What kind it is.
    pub spec: &'a NormSpec,
    /// Weight and bias.
    pub tensors: &'a NormTensors<B>,
}

impl<B: KernelBackend> Norm<'_, B> {
    /// norm(x), `[rows, width]`; added to `onto` where that is given.
    pub fn forward(&self, x: &Tensor<B, 2>, onto: Option<&Tensor<B, 2>>) -> Tensor<B, 2> {
        let NormTensors { weight, bias } = self.tensors;
        match (self.spec.kind, onto) {
            (NormKind::Rms(norm), Some(onto)) => rms_norm_onto(x, weight, norm, onto),
            (NormKind::Rms(norm), None) => rms_norm(x, weight, norm),
            (NormKind::Layer { epsilon, .. }, onto) => layer_norm(x, weight, bias.as_ref(), epsilon, onto),
        }
    }

    /// dL/dx for the upstream gradient `dy`; added to `onto` where that is given.
    pub fn backward(&self, x: &Tensor<B, 2>, dy: Tensor<B, 2>, onto: Option<&Tensor<B, 2>>) -> Tensor<B, 2> {
        let weight = &self.tensors.weight;
        match self.spec.kind {
            NormKind::Rms(norm) => rms_norm_backward(x, weight, norm, dy, onto),
            NormKind::Layer { epsilon, .. } => layer_norm_backward(x, weight, epsilon, dy, onto),
        }
    }

    /// [`Self::forward`] over heads, `[tokens, heads, dim]`: each by itself, or all of a token's together, as the norm is
    /// wide.
    pub fn forward_heads(&self, x: &Tensor<B, 3>) -> Tensor<B, 3> {
        let shape = x.dims();
        self.forward(&self.rows(x.clone()), None).reshape(shape)
    }

    /// [`Self::backward`] over heads, `[tokens, heads, dim]`.
    pub fn backward_heads(&self, x: &Tensor<B, 3>, dy: Tensor<B, 3>) -> Tensor<B, 3> {
        let shape = x.dims();
        self.backward(&self.rows(x.clone()), self.rows(dy), None).reshape(shape)
    }

    fn rows(&self, x: Tensor<B, 3>) -> Tensor<B, 2> {
        let rows = x.shape().num_elements() / self.spec.width;
        x.reshape([rows, self.spec.width])
    }
}
