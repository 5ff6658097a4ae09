//! Root-mean-square normalisation over the last dimension, with a frozen weight.
//!
//! ```text
//! r  = 1 / √(mean(x²) + ε)          y = round(x · r) · weight
//! dx = r · (g − x · r² · mean(g · x))          g = dy · weight
//! ```
//!
//! `x`, `y` `[rows, width]` in the compute dtype; everything inside is f32. `round` is to the compute dtype, where
//! Llama's implementation casts before it multiplies by the weight. For normalised queries and keys, call it on
//! `[tokens · heads, head_dim]`. The backward is given `x` and recomputes `r`.
//!
//! Zhang and Sennrich, *Root Mean Square Layer Normalization* (<https://arxiv.org/abs/1910.07467>).

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn::tensor::{Tensor, backend::Backend};

/// RMS normalisation on a backend.
pub trait RmsNormOps: Backend {
    /// [`rms_norm`].
    fn rms_norm(x: &Tensor<Self, 2>, weight: &Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2>;

    /// [`rms_norm_backward`].
    fn rms_norm_backward(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        epsilon: f64,
        dy: Tensor<Self, 2>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2>;
}

/// `x / √(mean(x²) + epsilon) · weight`, row by row.
///
/// # Shapes
/// `x` `[rows, width]`, `weight` `[width]`, result like `x`, dtype included.
///
/// # Panics
/// If the weight has another width, or a dtype is none of f32, bf16, f16.
pub fn rms_norm<B: RmsNormOps>(x: &Tensor<B, 2>, weight: &Tensor<B, 1>, epsilon: f64) -> Tensor<B, 2> {
    assert_eq!(weight.dims(), [x.dims()[1]], "rms_norm: the weight does not fit x {:?}", x.dims());
    B::rms_norm(x, weight, epsilon)
}

/// The gradient of `x` of [`rms_norm`] for upstream `dy`, plus `residual` where the norm's input also goes round it:
/// one rounding for the sum.
///
/// # Shapes
/// All `[rows, width]`, in the dtype of `x`.
///
/// # Panics
/// If shapes or dtypes do not fit.
pub fn rms_norm_backward<B: RmsNormOps>(
    x: &Tensor<B, 2>,
    weight: &Tensor<B, 1>,
    epsilon: f64,
    dy: Tensor<B, 2>,
    residual: Option<&Tensor<B, 2>>,
) -> Tensor<B, 2> {
    assert_eq!(weight.dims(), [x.dims()[1]], "rms_norm: the weight does not fit x {:?}", x.dims());
    for other in residual.into_iter().chain([&dy]) {
        assert!(
            other.dims() == x.dims() && other.dtype() == x.dtype(),
            "rms_norm: a gradient does not fit x"
        );
    }
    B::rms_norm_backward(x, weight, epsilon, dy, residual)
}
