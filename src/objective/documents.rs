//! The documents of a micro-batch under the output head: the summed negative log-likelihood of each, and values of
//! documents spread over their rows.

use burn_tensor::backend::Backend;
use burn_tensor::{DType, Int, Tensor, TensorData};
use tune_kernels::KernelBackend;
use tune_kernels::linear_cross_entropy::linear_cross_entropy;
use tune_kernels::segment_sum::segment_sum;

use crate::data::batch::MicroBatch;
use crate::model::Decoder;

/// Σ nll of each document, f32 `[documents]`; and on request for every row the gradient of its own document's sum with
/// respect to `normed`, the final norm's output, `[tokens, hidden]`.
pub(super) fn sums<B: KernelBackend>(
    decoder: &Decoder<B>,
    normed: &Tensor<B, 2>,
    batch: &MicroBatch,
    wants_gradient: bool,
) -> (Tensor<B, 1>, Option<Tensor<B, 2>>) {
    let found = linear_cross_entropy(normed, decoder.head(), &batch.targets, wants_gradient);
    let mut offsets = vec![0];
    let mut end = 0;
    offsets.extend(batch.lengths().map(|length| {
        end += length as u32;
        end
    }));
    (segment_sum(&found.rows, &offsets), found.gradient)
}

/// Supervised tokens of each document, f32 `[documents]`.
pub(super) fn lengths<B: Backend>(batch: &MicroBatch, device: &B::Device) -> Tensor<B, 1> {
    let lengths: Vec<f32> = batch.lengths().map(|length| length.max(1) as f32).collect();
    let shape = [lengths.len()];
    Tensor::from_data(TensorData::new(lengths, shape), (device, DType::F32))
}

/// The value of each token's document, `[tokens]`.
pub(super) fn over_tokens<B: Backend>(values: &Tensor<B, 1>, batch: &MicroBatch) -> Tensor<B, 1> {
    spread(values, batch.documents().map(|rows| rows.len()))
}

/// The value of each supervised row's document, `[supervised]`.
pub(super) fn over_rows<B: Backend>(values: &Tensor<B, 1>, batch: &MicroBatch) -> Tensor<B, 1> {
    spread(values, batch.lengths().map(|length| length as usize))
}

fn spread<B: Backend>(values: &Tensor<B, 1>, counts: impl Iterator<Item = usize>) -> Tensor<B, 1> {
    let repeated = |(document, count): (usize, usize)| std::iter::repeat_n(document as i32, count);
    let indices: Vec<i32> = counts.enumerate().flat_map(repeated).collect();
    let shape = [indices.len()];
    let indices: Tensor<B, 1, Int> = Tensor::from_data(TensorData::new(indices, shape), &values.device());
    values.clone().select(0, indices)
}
