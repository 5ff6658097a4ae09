//! Supervised fine-tuning: the negative log-likelihood of the supervised tokens.
//!
//! `Σₜ −log softmax(norm(hₜ) · headᵀ)[targetₜ]` over the positions whose target is not
//! [`IGNORED`](tune_kernels::linear_cross_entropy::IGNORED). The logits are never held as a whole.

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear_cross_entropy::trained::trained_linear_cross_entropy;
use tune_kernels::linear_cross_entropy::{LossAndGradient, linear_cross_entropy};

use super::{Differentiated, Summed, TrainedHead};
use crate::model::Decoder;

/// With gradients of hidden states and of the head.
pub(super) fn with_trained_head<B: KernelBackend>(
    decoder: &Decoder<B>,
    hidden: &Tensor<B, 2>,
    TrainedHead { weight, sum }: TrainedHead<B>,
    targets: &[i32],
) -> Differentiated<B> {
    let normed = decoder.final_norm(hidden);
    let found = trained_linear_cross_entropy(&normed, &weight, decoder.spec().logits, targets, None, sum);
    drop(normed);
    let dhidden = decoder.final_norm_backward(hidden, found.hidden);
    let loss = Summed { value: found.loss, statistics: None };
    Differentiated { loss, hidden: Some(dhidden), head: Some(found.head) }
}

/// With the gradient of hidden states, on request. `targets` `[tokens]` holds, at position t, the id of the token that
/// follows it, or −100.
pub(super) fn with_frozen_head<B: KernelBackend>(
    decoder: &Decoder<B>,
    hidden: &Tensor<B, 2>,
    targets: &[i32],
    wants_gradient: bool,
) -> Differentiated<B> {
    let normed = decoder.final_norm(hidden);
    let LossAndGradient { loss, gradient, .. } =
        linear_cross_entropy(&normed, decoder.head(), targets, wants_gradient);
    drop(normed);
    let gradient = gradient.map(|gradient| decoder.final_norm_backward(hidden, gradient));
    Differentiated { loss: Summed { value: loss, statistics: None }, hidden: gradient, head: None }
}
