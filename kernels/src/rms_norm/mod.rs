//! Root-mean-square normalisation over the last dimension, with a frozen weight.
//!
//! ```text
//! r  = 1 / √(mean(x²) + ε)          y = onto + round(x · r) · w          w = weight, or 1 + weight
//! dx = residual + r · (g − x · r² · mean(g · x))          g = dy · w
//! ```
//!
//! `x`, `y` `[rows, width]` in the compute dtype; everything inside is f32, and `y` is rounded once more when it is written.
//! `round` is to the compute dtype under [`Rounding::BeforeWeight`], as Llama's implementation does; under
//! [`Rounding::Last`] it is left out, as Gemma's does. For normalised queries and keys, call it on
//! `[tokens · heads, head_dim]`. The backward is given `x` and recomputes `r`; that of `onto` is `dy` itself.
//!
//! Zhang and Sennrich, *Root Mean Square Layer Normalization* (<https://arxiv.org/abs/1910.07467>).

mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(target_arch = "x86_64")]
mod fast;
pub mod reference;

use burn_tensor::{Tensor, backend::Backend};

/// Where the normalised values are rounded to the compute dtype, beside the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// Before they are multiplied by the weight (Llama, Mistral, Qwen).
    BeforeWeight,
    /// Nowhere (Gemma).
    Last,
}

/// What the normalised values are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormWeight {
    /// The weight.
    Plain,
    /// One plus the weight, added in f32 (Gemma).
    OnePlus,
}

/// A norm beside its weight. An epsilon alone is Llama's norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square before its root.
    pub epsilon: f64,
    /// Where values are rounded.
    pub rounding: Rounding,
    /// How the weight enters.
    pub weight: NormWeight,
}

impl From<f64> for RmsNorm {
    fn from(epsilon: f64) -> Self {
        Self { epsilon, rounding: Rounding::BeforeWeight, weight: NormWeight::Plain }
    }
}

/// RMS normalisation on a backend.
pub trait RmsNormOps: Backend {
    /// [`rms_norm`], or [`rms_norm_onto`] where `onto` is given.
    fn rms_norm(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        norm: RmsNorm,
        onto: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2>;

    /// [`rms_norm_backward`].
    fn rms_norm_backward(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        norm: RmsNorm,
        dy: Tensor<Self, 2>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2>;
}

/// `x / √(mean(x²) + epsilon) · w`, row by row.
///
/// # Shapes
/// `x` `[rows, width]`, `weight` `[width]`, result like `x`, dtype included.
///
/// # Panics
/// If the weight has another width, or a dtype is none of f32, bf16, f16.
pub fn rms_norm<B: RmsNormOps>(
    x: &Tensor<B, 2>,
    weight: &Tensor<B, 1>,
    norm: impl Into<RmsNorm>,
) -> Tensor<B, 2> {
    check(x, weight, &[]);
    B::rms_norm(x, weight, norm.into(), None)
}

/// `onto` plus [`rms_norm`], with one rounding for the sum: a norm behind a block, whose result goes onto the residual.
///
/// # Shapes
/// As [`rms_norm`]; `onto` like `x`, dtype included.
///
/// # Panics
/// As [`rms_norm`], and if `onto` differs from `x` in shape or dtype.
pub fn rms_norm_onto<B: RmsNormOps>(
    x: &Tensor<B, 2>,
    weight: &Tensor<B, 1>,
    norm: impl Into<RmsNorm>,
    onto: &Tensor<B, 2>,
) -> Tensor<B, 2> {
    check(x, weight, &[onto]);
    B::rms_norm(x, weight, norm.into(), Some(onto))
}

/// The gradient of `x` of [`rms_norm`] and [`rms_norm_onto`] for upstream `dy`, plus `residual` where the norm's input also
/// goes past the norm: one rounding for the sum.
///
/// # Shapes
/// All `[rows, width]`, in the dtype of `x`.
///
/// # Panics
/// If shapes or dtypes do not fit.
pub fn rms_norm_backward<B: RmsNormOps>(
    x: &Tensor<B, 2>,
    weight: &Tensor<B, 1>,
    norm: impl Into<RmsNorm>,
    dy: Tensor<B, 2>,
    residual: Option<&Tensor<B, 2>>,
) -> Tensor<B, 2> {
    check(x, weight, &[&dy]);
    check(x, weight, residual.as_slice());
    B::rms_norm_backward(x, weight, norm.into(), dy, residual)
}

fn check<B: Backend>(x: &Tensor<B, 2>, weight: &Tensor<B, 1>, others: &[&Tensor<B, 2>]) {
    assert_eq!(weight.dims(), [x.dims()[1]], "rms_norm: the weight does not fit x {:?}", x.dims());
    for other in others {
        let fits = other.dims() == x.dims() && other.dtype() == x.dtype();
        assert!(fits, "rms_norm: {:?} in {:?} beside x {:?}", other.dims(), other.dtype(), x.dims());
    }
}
