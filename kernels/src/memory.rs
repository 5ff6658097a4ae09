//! Bytes that the ops hold while they run on the CPU and on a GPU, beside their arguments and results: for a memory plan.
//!
//! Each function names the buffers of its op's `cpu.rs` or `cube.rs`; `tests/memory.rs` of the root package compares
//! plan and measurement.

pub use crate::device::DeviceMemory;

use burn_tensor::DType;

use crate::cpu::matmul::{self, Kernels};
use crate::cpu::parallel;
use crate::cpu::scalar::with_float;
use crate::delta_rule::{self, DeltaHeads};
use crate::linear_cross_entropy;

/// Bytes that one value of a packed operand takes, for products of `dtype` on the instruction set in use.
pub fn packed_value_bytes(dtype: DType) -> u64 {
    with_float!(dtype, T => 4 / Kernels::of::<T>().element().indices() as u64)
}

/// Bytes of panels and accumulators that the threads hold during a product of `tokens` rows in `dtype`.
pub fn panel_bytes(tokens: u64, dtype: DType) -> u64 {
    let element = with_float!(dtype, T => Kernels::of::<T>().element());
    parallel::threads() as u64 * matmul::task_bytes(tokens, element)
}

/// Bytes inside [`delta_rule::delta_rule_backward`], whose longest document has `tokens`: each thread holds the states of
/// one head.
pub fn delta_rule_bytes(heads: DeltaHeads, tokens: u64) -> u64 {
    let tasks = (parallel::threads() as u64).min(heads.keys as u64);
    4 * tasks * delta_rule::task_numbers(heads, tokens)
}

/// Bytes for each token inside [`delta_rule::delta_rule_backward`] on a GPU: unit queries and keys, gates and their
/// slopes, and what its sweeps leave to one another.
pub fn delta_rule_bytes_on_gpu(heads: DeltaHeads) -> u64 {
    let DeltaHeads { keys, values, key_dim, value_dim } = heads;
    // States and products between chunks, for each of their tokens.
    let chunks = (values * key_dim * (value_dim + 1)).div_ceil(delta_rule::CHUNK);
    4 * (2 * keys * key_dim + 3 * values + values * (3 * key_dim + 2 * value_dim) + chunks) as u64
}

/// Bytes of the logits and of what is computed from them inside [`trained_linear_cross_entropy`], for `tokens` supervised
/// rows.
///
/// [`trained_linear_cross_entropy`]: linear_cross_entropy::trained::trained_linear_cross_entropy
pub fn trained_loss_bytes(tokens: u64, vocabulary: u64) -> u64 {
    let bytes = linear_cross_entropy::trained::BYTES_PER_LOGIT;
    linear_cross_entropy::trained::chunk_rows(tokens, vocabulary) * vocabulary * bytes
}

/// Bytes inside [`linear_cross_entropy::linear_cross_entropy`] with a gradient, which is included, for `tokens`
/// supervised rows.
pub fn loss_bytes(tokens: u64, width: u64, vocabulary: u64, dtype: DType) -> u64 {
    let value = dtype.size() as u64;
    let [rows, hidden, logits] = [tokens, width, vocabulary].map(|size| size as usize);
    let packed = packed_value_bytes(dtype) as usize;
    let chunk = linear_cross_entropy::cpu::chunk_bytes(rows, hidden, logits, packed, value as usize);
    chunk as u64 + tokens * width * value
}

/// Bytes inside [`linear_cross_entropy::linear_cross_entropy`] on a GPU, with a gradient, which is included, for `tokens`
/// supervised rows: a chunk's logits in f32, and its rows, gathered and as gradient.
pub fn loss_bytes_on_gpu(tokens: u64, width: u64, vocabulary: u64, dtype: DType) -> u64 {
    let value = dtype.size() as u64;
    let rows = chunk_rows_on_gpu(tokens, vocabulary);
    rows * vocabulary * 4 + 2 * rows * width * value + 4 * tokens + tokens * width * value
}

/// Bytes of the largest buffer in it: the logits of a chunk, in f32.
pub fn logits_bytes_on_gpu(tokens: u64, vocabulary: u64) -> u64 {
    4 * chunk_rows_on_gpu(tokens, vocabulary) * vocabulary
}

/// Rows of the chunks that a GPU cuts the loss into.
fn chunk_rows_on_gpu(tokens: u64, vocabulary: u64) -> u64 {
    let most = ((300 << 20) / (4 * vocabulary).max(1)).max(128);
    let rows = tokens.div_ceil(tokens.div_ceil(most).max(1)).max(1);
    if rows == tokens { rows } else { rows.next_multiple_of(128).min(most / 128 * 128) }
}

/// Bytes of a dense NF4 weight of `weights` numbers, for products in the compute dtype. Whether a GPU needs it may be
/// measured at the first product of a shape, which then takes it.
pub fn weight_scratch_on_gpu(weights: u64, dtype: DType) -> u64 {
    weights * dtype.size() as u64
}

#[cfg(all(test, feature = "cube"))]
mod tests {
    use super::*;

    /// A plan is made in builds without GPUs too, and must not drift from the ops.
    #[test]
    fn plans_for_gpus_are_those_of_their_ops() {
        for tokens in [1, 63, 128, 129, 1000, 2048, 100_000] {
            for vocabulary in [1, 50, 49_152, 151_936, 1_000_000] {
                let theirs = linear_cross_entropy::cube::chunk_rows(tokens as usize, vocabulary as usize);
                assert_eq!(chunk_rows_on_gpu(tokens, vocabulary), theirs as u64);
            }
        }
    }
}
