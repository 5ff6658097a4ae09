//! Layer normalisation over the last dimension, with a frozen weight and bias.
//!
//! ```text
//! μ  = mean(x)     r = 1 / √(mean((x − μ)²) + ε)     n = (x − μ) · r          y = onto + n · weight + bias
//! dx = residual + r · (g − mean(g) − n · mean(g · n))          g = dy · weight
//! ```
//!
//! `x`, `y` `[rows, width]` in the compute dtype; everything inside is f32, and the result is rounded once. The backward is
//! given `x` and recomputes μ and r; that of `onto` is `dy` itself.
//!
//! Ba, Kiros and Hinton, *Layer Normalization* (<https://arxiv.org/abs/1607.06450>).

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn_tensor::{Tensor, backend::Backend};

/// Layer normalisation on a backend.
pub trait LayerNormOps: Backend {
    /// [`layer_norm`].
    fn frozen_layer_norm(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        bias: Option<&Tensor<Self, 1>>,
        epsilon: f64,
        onto: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2>;

    /// [`layer_norm_backward`].
    fn frozen_layer_norm_backward(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        epsilon: f64,
        dy: Tensor<Self, 2>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2>;
}

/// `(x − μ) / √(variance + epsilon) · weight + bias`, row by row; added to `onto` where that is given, with one rounding for
/// the sum.
///
/// # Shapes
/// `x` `[rows, width]`, `weight` and `bias` `[width]`, `onto` and result like `x`, dtype included.
///
/// # Panics
/// If shapes or dtypes do not fit, or a dtype is none of f32, bf16, f16.
pub fn layer_norm<B: LayerNormOps>(
    x: &Tensor<B, 2>,
    weight: &Tensor<B, 1>,
    bias: Option<&Tensor<B, 1>>,
    epsilon: f64,
    onto: Option<&Tensor<B, 2>>,
) -> Tensor<B, 2> {
    check(x, weight, onto.as_slice());
    assert!(bias.is_none_or(|bias| bias.dims() == weight.dims()), "layer_norm: the bias does not fit x");
    B::frozen_layer_norm(x, weight, bias, epsilon, onto)
}

/// The gradient of `x` for upstream `dy`, plus `residual` where the norm's input also goes past the norm: one rounding for the
/// sum. Written over `dy` where this call is its only holder.
///
/// # Shapes
/// All `[rows, width]`, in the dtype of `x`.
///
/// # Panics
/// If shapes or dtypes do not fit.
pub fn layer_norm_backward<B: LayerNormOps>(
    x: &Tensor<B, 2>,
    weight: &Tensor<B, 1>,
    epsilon: f64,
    dy: Tensor<B, 2>,
    residual: Option<&Tensor<B, 2>>,
) -> Tensor<B, 2> {
    check(x, weight, &[&dy]);
    check(x, weight, residual.as_slice());
    B::frozen_layer_norm_backward(x, weight, epsilon, dy, residual)
}

fn check<B: Backend>(x: &Tensor<B, 2>, weight: &Tensor<B, 1>, others: &[&Tensor<B, 2>]) {
    assert_eq!(weight.dims(), [x.dims()[1]], "layer_norm: the weight does not fit x {:?}", x.dims());
    for other in others {
        let fits = other.dims() == x.dims() && other.dtype() == x.dtype();
        assert!(fits, "layer_norm: {:?} in {:?} beside x {:?}", other.dims(), other.dtype(), x.dims());
    }
}
