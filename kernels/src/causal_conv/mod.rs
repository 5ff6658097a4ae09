//! Causal convolution of each channel with a short kernel of its own, within each document.
//!
//! ```text
//! u[t, c] = Σⱼ w[c, j] · x[t − (size − 1) + j, c]          tokens before the document count as zero
//! y = u · σ(u)   with SiLU, else u
//! du = dy · σ(u) (1 + u (1 − σ(u)))   with SiLU, else dy
//! dx[s, c] = Σᵢ w[c, size − 1 − i] · du[s + i, c]          within the document
//! ```
//!
//! `x`, `y` `[tokens, channels]` in the compute dtype; sums are f32, rounded once. The backward recomputes u. To continue a
//! sequence, put its last `size − 1` tokens before the new ones, and drop their rows of the result.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn_tensor::{Tensor, backend::Backend};

use crate::attention::DocumentOffsets;

/// The causal convolution on a backend.
pub trait CausalConvOps: Backend {
    /// [`causal_conv`].
    fn causal_conv(x: &Tensor<Self, 2>, conv: CausalConv<'_, Self>) -> Tensor<Self, 2>;

    /// [`causal_conv_backward`].
    fn causal_conv_backward(
        x: &Tensor<Self, 2>,
        conv: CausalConv<'_, Self>,
        dy: &Tensor<Self, 2>,
    ) -> Tensor<Self, 2>;
}

/// What `x` is convolved with.
#[derive(Debug)]
pub struct CausalConv<'a, B: Backend> {
    /// Frozen, `[channels, size]`; its last column multiplies the token itself.
    pub weight: &'a Tensor<B, 2>,
    /// Whether the sum goes through x · σ(x).
    pub silu: bool,
    /// Where documents begin and end: its queries.
    pub documents: &'a DocumentOffsets,
}

impl<B: Backend> Clone for CausalConv<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for CausalConv<'_, B> {}

/// The convolution of `x` `[tokens, channels]`, like `x`, dtype included.
///
/// # Panics
/// If the weight or the documents do not fit `x`, or the dtype is none of f32, bf16, f16.
pub fn causal_conv<B: CausalConvOps>(x: &Tensor<B, 2>, conv: CausalConv<'_, B>) -> Tensor<B, 2> {
    check(x, conv);
    B::causal_conv(x, conv)
}

/// The gradient of `x` for upstream `dy`, all like `x`.
///
/// # Panics
/// As [`causal_conv`].
pub fn causal_conv_backward<B: CausalConvOps>(
    x: &Tensor<B, 2>,
    conv: CausalConv<'_, B>,
    dy: &Tensor<B, 2>,
) -> Tensor<B, 2> {
    check(x, conv);
    assert!(dy.dims() == x.dims() && dy.dtype() == x.dtype(), "causal convolution: dy is like x");
    B::causal_conv_backward(x, conv, dy)
}

fn check<B: Backend>(x: &Tensor<B, 2>, conv: CausalConv<'_, B>) {
    let ([tokens, channels], [rows, size]) = (x.dims(), conv.weight.dims());
    assert!(rows == channels && size > 0, "causal convolution: a weight [{rows}, {size}] on {channels}");
    assert_eq!(conv.documents.queries(), tokens, "causal convolution: documents do not cover x");
}
