//! Supervised fine-tuning with the loss of each token weighed by its probability.
//!
//! `Σₜ pₜ · (−ln pₜ)` with `pₜ = exp(−lossₜ)` taken as a constant, over the positions that are supervised.

use burn_tensor::{Int, Tensor, TensorData};
use tune_kernels::KernelBackend;
use tune_kernels::linear_cross_entropy::trained::trained_linear_cross_entropy;
use tune_kernels::linear_cross_entropy::{IGNORED, linear_cross_entropy};
use tune_kernels::row_scale::row_scale;

use super::{Differentiated, Summed, TrainedHead};
use crate::model::Decoder;

/// With the gradient of hidden states, on request. `targets` `[tokens]` as in supervised fine-tuning.
pub(super) fn with_frozen_head<B: KernelBackend>(
    decoder: &Decoder<B>,
    hidden: &Tensor<B, 2>,
    targets: &[i32],
    wants_gradient: bool,
) -> Differentiated<B> {
    let normed = decoder.final_norm(hidden);
    let found = linear_cross_entropy(&normed, decoder.head(), targets, wants_gradient);
    drop(normed);
    let weights = found.rows.clone().neg().exp();
    let gradient = found.gradient.map(|gradient| {
        let gradient = row_scale(gradient, &over_tokens(&weights, targets));
        decoder.final_norm_backward(hidden, gradient)
    });
    let loss = Summed { value: (weights * found.rows).sum(), statistics: None };
    Differentiated { loss, hidden: gradient, head: None }
}

/// With gradients of hidden states and of the head, which take a second pass over it: the weights are known only after
/// the first.
pub(super) fn with_trained_head<B: KernelBackend>(
    decoder: &Decoder<B>,
    hidden: &Tensor<B, 2>,
    TrainedHead { weight, sum }: TrainedHead<B>,
    targets: &[i32],
) -> Differentiated<B> {
    let normed = decoder.final_norm(hidden);
    let rows = linear_cross_entropy(&normed, decoder.head(), targets, false).rows;
    let weights = rows.clone().neg().exp();
    let found =
        trained_linear_cross_entropy(&normed, &weight, decoder.spec().logits, targets, Some(&weights), sum);
    drop(normed);
    let loss = Summed { value: (weights * rows).sum(), statistics: None };
    let hidden = decoder.final_norm_backward(hidden, found.hidden);
    Differentiated { loss, hidden: Some(hidden), head: Some(found.head) }
}

/// The value of each token's row; some row's where a token is not supervised, whose gradient is zero.
fn over_tokens<B: KernelBackend>(rows: &Tensor<B, 1>, targets: &[i32]) -> Tensor<B, 1> {
    let mut next = 0;
    let row = |target: &i32| {
        let row = next;
        next += i32::from(*target != IGNORED);
        if *target == IGNORED { 0 } else { row }
    };
    let indices: Vec<i32> = targets.iter().map(row).collect();
    let shape = [indices.len()];
    let indices: Tensor<B, 1, Int> = Tensor::from_data(TensorData::new(indices, shape), &rows.device());
    rows.clone().select(0, indices)
}
