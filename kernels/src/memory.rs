//! What the ops hold on the CPU while they run, beside their arguments and results: for a memory plan.
//!
//! Each function names the buffers of its op's `cpu.rs`; `tests/memory.rs` of the root package holds plan and
//! measurement together.

use burn::tensor::DType;

use crate::cpu::matmul::{self, Kernels};
use crate::cpu::parallel;
use crate::cpu::scalar::with_float;
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

/// Bytes of the logits, and of what is made of them, inside [`trained_linear_cross_entropy`], for `tokens` supervised
/// rows.
///
/// [`trained_linear_cross_entropy`]: linear_cross_entropy::trained::trained_linear_cross_entropy
pub fn trained_loss_bytes(tokens: u64, vocabulary: u64) -> u64 {
    let bytes = linear_cross_entropy::trained::BYTES_PER_LOGIT;
    linear_cross_entropy::chunk_rows(tokens, vocabulary, bytes) * vocabulary * bytes
}

/// Bytes inside [`linear_cross_entropy::linear_cross_entropy`] with a gradient, which is included, for `tokens`
/// supervised rows.
pub fn loss_bytes(tokens: u64, width: u64, vocabulary: u64, dtype: DType) -> u64 {
    let packed = packed_value_bytes(dtype);
    let rows = linear_cross_entropy::chunk_rows(tokens, vocabulary, packed);
    let value = dtype.size() as u64;
    let exponentials = rows * vocabulary * packed;
    // One sum for each panel of 32 columns.
    let sums = rows * vocabulary.div_ceil(32) * 4;
    let rows_of_the_chunk = rows * width * (value + packed + 4);
    exponentials + sums + rows_of_the_chunk + tokens * width * value
}
