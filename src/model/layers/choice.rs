//! The experts that the router of a mixture chose for the tokens of a batch, kept for a forward pass that is run again; and
//! what the loss that spreads tokens over experts needs to know of it.

use std::sync::Arc;

use burn_tensor::activation::softmax;
use burn_tensor::{DType, Tensor};
use tune_kernels::KernelBackend;
use tune_kernels::router::{Router, Routes, route};

/// The choice of one mixture.
#[derive(Clone, Debug)]
pub struct Choice<B: KernelBackend> {
    /// Experts of the mixture.
    pub experts: usize,
    /// For each token its experts, the best first.
    pub(super) chosen: Arc<[u32]>,
    /// How much each counts, f32 `[tokens, used]`.
    pub(super) weights: Tensor<B, 2>,
    /// The probability of each expert, summed over tokens, f32 `[experts]`, where it was asked for.
    pub shares: Option<Tensor<B, 1>>,
}

/// What mixtures are asked for the loss that spreads tokens over experts.
#[derive(Clone, Debug)]
pub enum Balance<B: KernelBackend> {
    /// Nothing: there is no such loss.
    Off,
    /// [`Choice::shares`].
    Shares,
    /// To add the slopes of the loss to the gradient: that of every probability of an expert, f32 `[experts]`.
    Slopes(Tensor<B, 1>),
}

impl<B: KernelBackend> Choice<B> {
    /// What `router` chooses by `logits`, `[tokens, experts]`.
    pub(super) fn new(logits: &Tensor<B, 2>, router: Router, balance: &Balance<B>) -> Self {
        let Routes { chosen, weights } = route(logits, None, router);
        let [_, experts] = logits.dims();
        let shares = match balance {
            Balance::Shares => Some(probabilities(logits).sum_dim(0).reshape([experts])),
            Balance::Off | Balance::Slopes(_) => None,
        };
        Self { experts, chosen: chosen.into(), weights, shares }
    }

    /// The experts of all tokens, one after the other.
    pub fn chosen(&self) -> &[u32] {
        &self.chosen
    }
}

impl<B: KernelBackend> Balance<B> {
    /// The gradient of `logits`, in their dtype, beside that of their answers.
    pub(super) fn add_to(&self, dlogits: Tensor<B, 2>, logits: &Tensor<B, 2>) -> Tensor<B, 2> {
        let Self::Slopes(slopes) = self else { return dlogits };
        let probabilities = probabilities(logits);
        let slopes = slopes.clone().reshape([1, logits.dims()[1]]);
        let along = (probabilities.clone() * slopes.clone()).sum_dim(1);
        dlogits + (probabilities * (slopes - along)).cast(logits.dtype())
    }
}

/// The softmax of every token, in f32.
fn probabilities<B: KernelBackend>(logits: &Tensor<B, 2>) -> Tensor<B, 2> {
    softmax(logits.clone().cast(DType::F32), 1)
}
