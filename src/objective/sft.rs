//! Supervised fine-tuning: the negative log-likelihood of the supervised tokens.
//!
//! `Σₜ −log softmax(norm(hₜ) · headᵀ)[targetₜ]` over the positions whose target is not
//! [`IGNORED`](tune_kernels::linear_cross_entropy::IGNORED). The logits are never held as a whole.

use burn::tensor::{Int, Tensor};
use tune_kernels::KernelBackend;
use tune_kernels::linear_cross_entropy::linear_cross_entropy;

use crate::model::Decoder;

/// The summed loss `[1]` (f32) of hidden states `[tokens, hidden]` that leave the last decoder layer.
///
/// `targets` `[tokens]` holds, at position t, the id of the token that follows it, or −100.
pub fn negative_log_likelihood<B, T>(
    decoder: &Decoder<B>,
    hidden: Tensor<T, 2>,
    targets: &Tensor<B, 1, Int>,
) -> Tensor<T, 1>
where
    B: KernelBackend<Frozen = B>,
    T: KernelBackend<Frozen = B>,
{
    linear_cross_entropy(decoder.final_norm(hidden), decoder.head(), targets)
}
