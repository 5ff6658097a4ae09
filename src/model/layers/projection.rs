//! A frozen linear projection.

use std::sync::{Arc, OnceLock};

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear::FrozenWeight;

use crate::adapter::dora::row_squares;

/// Frozen weight and bias of one projection.
#[derive(Clone, Debug)]
pub struct FrozenProjection<B: KernelBackend> {
    /// `[out, in]`, dense or in 4 bits.
    pub weight: FrozenWeight<B>,
    /// `[out]`, compute dtype.
    pub bias: Option<Tensor<B, 1>>,
    /// Shared by all copies of a weight that is fetched anew for each use.
    squares: Arc<OnceLock<Tensor<B, 2>>>,
}

impl<B: KernelBackend> FrozenProjection<B> {
    /// Of a weight `[out, in]` and a bias `[out]`.
    pub fn new(weight: FrozenWeight<B>, bias: Option<Tensor<B, 1>>) -> Self {
        Self { weight, bias, squares: Arc::new(OnceLock::new()) }
    }

    /// The same, with sums of squares that were found before or are kept for the next copy.
    #[must_use]
    pub(in crate::model) fn with_squares(mut self, squares: Arc<OnceLock<Tensor<B, 2>>>) -> Self {
        self.squares = squares;
        self
    }

    /// ‖W‖² of every row, f32 `[1, out]`: what DoRA's norms begin with. Computed at the first call, through a copy of the
    /// weight in f32.
    pub fn row_squares(&self) -> &Tensor<B, 2> {
        self.squares.get_or_init(|| row_squares(&self.weight))
    }

    /// Bytes that weight and bias take.
    pub fn bytes(&self) -> u64 {
        let bias = self.bias.as_ref().map_or(0, |bias| bias.dims()[0] * bias.dtype().size());
        (self.weight.bytes() + bias) as u64
    }
}
