//! Every column of a matrix times a factor of its own: what DoRA does to the output of a projection.
//!
//! ```text
//! y = u · f + bias + residual          du = dy · f          df = Σ_tokens dy · u
//! ```
//!
//! `u` `[tokens, out]` is in the compute dtype, `f` `[1, out]` in f32; arithmetic is f32, rounded once.
//!
//! Liu et al., *DoRA* (<https://arxiv.org/abs/2402.09353>), equation 5.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn_tensor::{DType, Tensor, backend::Backend};

/// Scaled columns on a backend, composed of its own operations unless it has a faster way.
pub trait ColumnScaleOps: Backend {
    /// [`column_scale`].
    fn column_scale(
        u: &Tensor<Self, 2>,
        factors: &Tensor<Self, 2>,
        bias: Option<&Tensor<Self, 1>>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        composed(u, factors, bias, residual)
    }

    /// [`column_scale_backward`].
    fn column_scale_backward(
        u: &Tensor<Self, 2>,
        factors: &Tensor<Self, 2>,
        dy: &Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        composed_backward(u, factors, dy)
    }
}

/// `u · factors + bias + residual`.
///
/// # Shapes
/// `u` and `residual` `[tokens, out]` of one dtype, `factors` `[1, out]` in f32, `bias` `[out]`.
///
/// # Panics
/// If shapes or dtypes do not fit.
pub fn column_scale<B: ColumnScaleOps>(
    u: &Tensor<B, 2>,
    factors: &Tensor<B, 2>,
    bias: Option<&Tensor<B, 1>>,
    residual: Option<&Tensor<B, 2>>,
) -> Tensor<B, 2> {
    check(u, factors);
    if let Some(bias) = bias {
        assert_eq!(bias.dims(), [u.dims()[1]], "column_scale: the bias does not fit the columns");
    }
    if let Some(residual) = residual {
        assert_eq!(residual.dims(), u.dims(), "column_scale: the residual has another shape");
        assert_eq!(residual.dtype(), u.dtype(), "column_scale: the residual has another dtype");
    }
    B::column_scale(u, factors, bias, residual)
}

/// The gradients of `u` (in its dtype) and of the factors (f32 `[1, out]`) for upstream `dy`.
///
/// # Panics
/// As [`column_scale`].
pub fn column_scale_backward<B: ColumnScaleOps>(
    u: &Tensor<B, 2>,
    factors: &Tensor<B, 2>,
    dy: &Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    check(u, factors);
    assert_eq!(dy.dims(), u.dims(), "column_scale: dy has another shape than the output");
    assert_eq!(dy.dtype(), u.dtype(), "column_scale: dy has another dtype than the output");
    B::column_scale_backward(u, factors, dy)
}

fn check<B: Backend>(u: &Tensor<B, 2>, factors: &Tensor<B, 2>) {
    assert_eq!(factors.dims(), [1, u.dims()[1]], "column_scale: one factor for each column");
    assert_eq!(factors.dtype(), DType::F32, "column_scale: factors are f32");
}

/// [`column_scale`] in the operations that every backend has.
fn composed<B: Backend>(
    u: &Tensor<B, 2>,
    factors: &Tensor<B, 2>,
    bias: Option<&Tensor<B, 1>>,
    residual: Option<&Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let mut y = u.clone().cast(DType::F32) * factors.clone();
    if let Some(bias) = bias {
        y = y + bias.clone().cast(DType::F32).unsqueeze();
    }
    if let Some(residual) = residual {
        y = y + residual.clone().cast(DType::F32);
    }
    y.cast(u.dtype())
}

/// [`column_scale_backward`] in the operations that every backend has.
fn composed_backward<B: Backend>(
    u: &Tensor<B, 2>,
    factors: &Tensor<B, 2>,
    dy: &Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let dtype = u.dtype();
    let (u, dy) = (u.clone().cast(DType::F32), dy.clone().cast(DType::F32));
    ((dy.clone() * factors.clone()).cast(dtype), (dy * u).sum_dim(0))
}
