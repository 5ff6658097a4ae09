//! The gate on attention's output: a second half of every query head's projection, behind a sigmoid.
//!
//! ```text
//! query[h], gate[h] = the two halves of head h of the query projection          y = mixed · σ(gate)
//! ```

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;

/// Queries, `[tokens, heads · dim]`, and their gates, alike, from the projection's `[tokens, heads · 2 · dim]`.
pub(super) fn split<B: KernelBackend>(both: Tensor<B, 2>, dim: usize) -> [Tensor<B, 2>; 2] {
    let [tokens, width] = both.dims();
    let heads = both.reshape([tokens, width / (2 * dim), 2 * dim]);
    [0, dim].map(|start| heads.clone().narrow(2, start, dim).reshape([tokens, width / 2]))
}

/// The gradient of the projection's output from those of queries and gates.
pub(super) fn join<B: KernelBackend>(halves: [Tensor<B, 2>; 2], dim: usize) -> Tensor<B, 2> {
    let [tokens, width] = halves[0].dims();
    let heads = halves.map(|half| half.reshape([tokens, width / dim, dim]));
    Tensor::cat(heads.into(), 2).reshape([tokens, 2 * width])
}
