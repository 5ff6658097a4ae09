//! Every row of a matrix times a factor of its own: what the weights of an objective do to the gradient of hidden states,
//! and those of a router to what an expert computed.
//!
//! ```text
//! y[i, j] = x[i, j] · factors[i]          dx[i, j] = dy[i, j] · factors[i]          dfactors[i] = Σ_j dy[i, j] · x[i, j]
//! ```
//!
//! `x` `[rows, width]` is in the compute dtype, factors in f32; arithmetic is f32, rounded once. A norm's backward is linear
//! in its upstream gradient row by row, so rows may be scaled before it.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn_tensor::{DType, Tensor, backend::Backend};

/// Scaled rows on a backend.
pub trait RowScaleOps: Backend {
    /// [`row_scale`].
    fn row_scale(x: Tensor<Self, 2>, factors: &Tensor<Self, 1>) -> Tensor<Self, 2>;

    /// Σ_j x[i, j] · y[i, j] for each row, f32.
    fn row_products(x: &Tensor<Self, 2>, y: &Tensor<Self, 2>) -> Tensor<Self, 1>;
}

/// `x` with each row times its factor; written over `x` where this call is its only holder.
///
/// # Shapes
/// `x` `[rows, width]`, `factors` f32 `[rows]`, result like `x`, dtype included.
///
/// # Panics
/// If shapes do not fit, factors are not f32, or the dtype of `x` is none of f32, bf16, f16.
pub fn row_scale<B: RowScaleOps>(x: Tensor<B, 2>, factors: &Tensor<B, 1>) -> Tensor<B, 2> {
    assert_eq!(factors.dims(), [x.dims()[0]], "row_scale: one factor for each row");
    assert_eq!(factors.dtype(), DType::F32, "row_scale: factors are f32");
    B::row_scale(x, factors)
}

/// The gradients of `x` (in its dtype, written over `dy` where this call is its only holder) and of the factors (f32
/// `[rows]`) for upstream `dy`.
///
/// # Panics
/// As [`row_scale`], and if `dy` is not like `x`.
pub fn row_scale_backward<B: RowScaleOps>(
    x: &Tensor<B, 2>,
    factors: &Tensor<B, 1>,
    dy: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 1>) {
    assert_eq!(dy.dims(), x.dims(), "row_scale: dy has another shape than the output");
    assert_eq!(dy.dtype(), x.dtype(), "row_scale: dy has another dtype than the output");
    let slopes = B::row_products(x, &dy);
    (row_scale(dy, factors), slopes)
}
