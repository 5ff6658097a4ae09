//! A frozen linear projection, and at call time the adapter on it.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear::{FrozenWeight, Linear, Lora};

/// Frozen weight and bias of one projection.
#[derive(Clone, Debug)]
pub struct FrozenProjection<B: KernelBackend> {
    /// `[out, in]`, dense or in 4 bits.
    pub weight: FrozenWeight<B>,
    /// `[out]`, compute dtype.
    pub bias: Option<Tensor<B, 1>>,
}

impl<B: KernelBackend> FrozenProjection<B> {
    /// The projection with an adapter on it, as the kernels see it.
    pub fn with<'a>(&'a self, adapter: Option<&'a Lora<B>>) -> Linear<'a, B> {
        Linear { weight: &self.weight, bias: self.bias.as_ref(), lora: adapter }
    }

    /// Bytes that weight and bias take.
    pub fn bytes(&self) -> u64 {
        let bias = self.bias.as_ref().map_or(0, |bias| bias.dims()[0] * bias.dtype().size());
        (self.weight.bytes() + bias) as u64
    }
}
