//! Supervised fine-tuning: the negative log-likelihood of the supervised tokens.
//!
//! `Σₜ −log softmax(norm(hₜ) · headᵀ)[targetₜ]` over the positions whose target is not
//! [`IGNORED`](tune_kernels::linear_cross_entropy::IGNORED). The logits are never held as a whole.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear_cross_entropy::trained::trained_linear_cross_entropy;
use tune_kernels::linear_cross_entropy::{LossAndGradient, linear_cross_entropy};
use tune_kernels::rms_norm::rms_norm_backward;

use crate::model::Decoder;

/// The loss of hidden states whose head is trained too.
#[derive(Clone, Debug)]
pub struct WithHead<B: KernelBackend> {
    /// Σ nll, `[1]`.
    pub loss: Tensor<B, 1>,
    /// Its gradient with respect to the hidden states.
    pub hidden: Tensor<B, 2>,
    /// With respect to the head, added to the sum so far.
    pub head: Tensor<B, 2>,
}

/// As [`negative_log_likelihood`], with its gradients, where the `head` `[vocab, hidden]` is trained too.
pub fn with_trained_head<B: KernelBackend>(
    decoder: &Decoder<B>,
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &[i32],
    sum: Option<Tensor<B, 2>>,
) -> WithHead<B> {
    let normed = decoder.final_norm(hidden);
    let found = trained_linear_cross_entropy(&normed, head, targets, sum);
    drop(normed);
    let (weight, epsilon) = (decoder.final_norm_weight(), decoder.spec().rms_norm_epsilon);
    let dhidden = rms_norm_backward(hidden, weight, epsilon, found.hidden, None);
    WithHead { loss: found.loss, hidden: dhidden, head: found.head }
}

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
