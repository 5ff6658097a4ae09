//! A frozen linear projection and, at call time, the adapter on it.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear::{FrozenWeight, Lora, linear};

/// Frozen weight and bias of one projection.
#[derive(Clone, Debug)]
pub struct FrozenProjection<B: KernelBackend> {
    /// `[out, in]`, dense or in 4 bits.
    pub weight: FrozenWeight<B>,
    /// `[out]`, compute dtype.
    pub bias: Option<Tensor<B, 1>>,
}

impl<B: KernelBackend<Frozen = B>> FrozenProjection<B> {
    /// x Wᵀ + bias + adapter(x): `[tokens, in]` → `[tokens, out]`.
    pub fn forward<T: KernelBackend<Frozen = B>>(
        &self,
        x: Tensor<T, 2>,
        adapter: Option<&Lora<T>>,
    ) -> Tensor<T, 2> {
        linear(x, &self.weight, self.bias.as_ref(), adapter)
    }

    /// Bytes that weight and bias take.
    pub fn bytes(&self) -> u64 {
        let bias = self.bias.as_ref().map_or(0, |bias| bias.dims()[0] * bias.dtype().size());
        (self.weight.bytes() + bias) as u64
    }
}
