//! Supervised fine-tuning: the negative log-likelihood of the supervised tokens.
//!
//! `Σₜ −log softmax(norm(hₜ) · headᵀ)[targetₜ]` over the positions whose target is not
//! [`IGNORED`](tune_kernels::linear_cross_entropy::IGNORED). The logits are never held as a whole.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear_cross_entropy::{LossAndGradient, linear_cross_entropy};
use tune_kernels::rms_norm::rms_norm_backward;

use crate::model::Decoder;

/// The summed loss `[1]` (f32) of hidden states `[tokens, hidden]` that leave the last decoder layer, and on request
/// its gradient with respect to them.
///
/// `targets` `[tokens]` holds, at position t, the id of the token that follows it, or −100.
pub fn negative_log_likelihood<B: KernelBackend>(
    decoder: &Decoder<B>,
    hidden: &Tensor<B, 2>,
    targets: &[i32],
    wants_gradient: bool,
) -> LossAndGradient<B> {
    let normed = decoder.final_norm(hidden);
    let LossAndGradient { loss, gradient } =
        linear_cross_entropy(&normed, decoder.head(), targets, wants_gradient);
    drop(normed);
    let (weight, epsilon) = (decoder.final_norm_weight(), decoder.spec().rms_norm_epsilon);
    let gradient = gradient.map(|gradient| rms_norm_backward(hidden, weight, epsilon, gradient, None));
    LossAndGradient { loss, gradient }
}
