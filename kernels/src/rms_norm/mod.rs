//! Root-mean-square normalisation over the last dimension, with a frozen weight.
//!
//! ```text
//! r  = 1 / √(mean(x²) + ε)          y = round(x · r) · weight
//! dx = r · (g − x · r² · mean(g · x))          g = dy · weight
//! ```
//!
//! `x`, `y` `[rows, width]` in the compute dtype; everything inside is f32. `round` is to the compute dtype, where
//! Llama's implementation casts before it multiplies by the weight. For normalised queries and keys, call it on
//! `[tokens · heads, head_dim]`. The backward keeps `x` and recomputes `r`.
//!
//! Zhang and Sennrich, *Root Mean Square Layer Normalization* (<https://arxiv.org/abs/1910.07467>).

pub(crate) mod autodiff;
pub(crate) mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use crate::backend::KernelBackend;

/// `x / √(mean(x²) + epsilon) · weight`, row by row.
///
/// # Shapes
/// `x` `[rows, width]`, `weight` `[width]`, result like `x`, dtype included.
///
/// # Panics
/// If the weight has another width, or a dtype is none of f32, bf16, f16.
pub fn rms_norm<B: KernelBackend>(
    x: Tensor<B, 2>,
    weight: &Tensor<B::Frozen, 1>,
    epsilon: f64,
) -> Tensor<B, 2> {
    assert_eq!(weight.dims(), [x.dims()[1]], "rms_norm: the weight does not fit x {:?}", x.dims());
    B::rms_norm(x, weight, epsilon)
}
