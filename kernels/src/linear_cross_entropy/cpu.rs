//! Head and loss on the CPU: a chunk of supervised rows at a time, logits in one reused buffer.

use burn::tensor::{Int, Tensor};
use burn_flex::Flex;

use super::IGNORED;
use crate::cpu::product::{Side, product};
use crate::cpu::scalar::{Scalar, narrow, widen, with_float};
use crate::cpu::{math, parallel, tensor, vectorized};
use crate::linear::FrozenWeight;
use crate::linear::cpu::WeightTensors;

/// Logits held at once (64 MiB of f32), unless that is fewer than `FEWEST_ROWS`.
const LOGITS: usize = 1 << 24;
/// More rows bring no speed.
const MOST_ROWS: usize = 256;
/// Fewer would unpack the head too often.
const FEWEST_ROWS: usize = 16;

/// `linear_cross_entropy` of the CPU backend.
pub(crate) fn loss(
    hidden: Tensor<Flex, 2>,
    head: &FrozenWeight<Flex>,
    targets: &Tensor<Flex, 1, Int>,
) -> Tensor<Flex, 1> {
    run(hidden, head, targets, false).0
}

/// `linear_cross_entropy_with_gradient` of the CPU backend.
pub(crate) fn loss_and_gradient(
    hidden: Tensor<Flex, 2>,
    head: &FrozenWeight<Flex>,
    targets: &Tensor<Flex, 1, Int>,
) -> (Tensor<Flex, 1>, Tensor<Flex, 2>) {
    run(hidden, head, targets, true)
}

/// The gradient is all zeros unless `wanted`.
fn run(
    hidden: Tensor<Flex, 2>,
    head: &FrozenWeight<Flex>,
    targets: &Tensor<Flex, 1, Int>,
    wanted: bool,
) -> (Tensor<Flex, 1>, Tensor<Flex, 2>) {
    let shape = hidden.dims();
    let width = shape[1];
    let [vocabulary, _] = head.shape();
    let supervised = supervised(targets, vocabulary);
    let hidden = tensor::primitive(hidden);
    let head = WeightTensors::new(head);
    with_float!(hidden.dtype(), T => {
        let hidden = hidden.storage::<T>();
        let head = head.rows::<T>();
        let mut gradient = vec![<T as Scalar>::from_f32(0.0); if wanted { hidden.len() } else { 0 }];
        let mut loss = 0.0f64;
        let rows = (LOGITS / vocabulary.max(1)).clamp(FEWEST_ROWS, MOST_ROWS).min(supervised.len());
        let mut inputs = vec![0.0f32; rows * width];
        let mut logits = vec![0.0f32; rows * vocabulary];
        for chunk in supervised.chunks(rows.max(1)) {
            let inputs = &mut inputs[..chunk.len() * width];
            let logits = &mut logits[..chunk.len() * vocabulary];
            for ((row, _), input) in chunk.iter().zip(inputs.chunks_exact_mut(width)) {
                widen(&hidden[row * width..][..width], input);
            }
            product(inputs, chunk.len(), &head, Side::Transposed, logits, |_, _, _| {});
            let mut losses = vec![0.0f64; chunk.len()];
            let tasks = logits.chunks_exact_mut(vocabulary).zip(chunk).zip(&mut losses).collect();
            parallel::for_each(tasks, 4 * chunk.len() * vocabulary, |((logits, (_, target)), loss)| {
                *loss = softmax_loss(logits, *target);
            });
            loss += losses.iter().sum::<f64>();
            if wanted {
                product(logits, chunk.len(), &head, Side::Plain, inputs, |_, _, _| {});
                for ((row, _), input) in chunk.iter().zip(inputs.chunks_exact(width)) {
                    narrow(input, &mut gradient[row * width..][..width]);
                }
            }
        }
        let gradient_shape = if wanted { shape } else { [0, width] };
        (tensor::from_vec(vec![loss as f32], [1]), tensor::from_vec(gradient, gradient_shape))
    })
}

/// (row, target) of every supervised row.
fn supervised(targets: &Tensor<Flex, 1, Int>, vocabulary: usize) -> Vec<(usize, usize)> {
    let targets = tensor::integers(targets).into_iter().enumerate();
    targets
        .filter(|(_, target)| *target != i64::from(IGNORED))
        .map(|(row, target)| {
            let target = usize::try_from(target).unwrap_or(usize::MAX);
            assert!(
                target < vocabulary,
                "linear_cross_entropy: the target of row {row} is no id below {vocabulary}"
            );
            (row, target)
        })
        .collect()
}

vectorized! {
    /// Returns ln Σ exp z − z[target] and turns z into its gradient, softmax(z) − [j = target].
    fn softmax_loss(logits: &mut [f32], target: usize) -> f64 {
        let max = math::max(logits);
        let at_target = logits[target];
        for logit in logits.iter_mut() {
            *logit = math::exp(*logit - max);
        }
        let sum = math::sum(logits);
        let factor = 1.0 / sum;
        for logit in logits.iter_mut() {
            *logit *= factor;
        }
        logits[target] -= 1.0;
        f64::from(sum).ln() + (f64::from(max) - f64::from(at_target))
    }
}
