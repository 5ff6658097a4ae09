//! A norm with its weight.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::rms_norm::{rms_norm, rms_norm_backward, rms_norm_onto};

use crate::model::parts::NormSpec;

/// A norm and its weight, `[width]`.
#[derive(Debug)]
pub struct Norm<'a, B: KernelBackend> {
    /// What kind it is.
    pub spec: &'a NormSpec,
    /// `[width]`.
    pub weight: &'a Tensor<B, 1>,
}

impl<B: KernelBackend> Norm<'_, B> {
    /// norm(x), `[rows, width]`; added to `onto` where that is given.
    pub fn forward(&self, x: &Tensor<B, 2>, onto: Option<&Tensor<B, 2>>) -> Tensor<B, 2> {
        match onto {
            Some(onto) => rms_norm_onto(x, self.weight, self.spec.kind, onto),
            None => rms_norm(x, self.weight, self.spec.kind),
        }
    }

    /// dL/dx for the upstream gradient `dy`; added to `onto` where that is given.
    pub fn backward(&self, x: &Tensor<B, 2>, dy: Tensor<B, 2>, onto: Option<&Tensor<B, 2>>) -> Tensor<B, 2> {
        rms_norm_backward(x, self.weight, self.spec.kind, dy, onto)
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
