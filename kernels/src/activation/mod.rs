//! The activation of a feed-forward block without a gate.
//!
//! ```text
//! GELU:       y = x Φ(x)                    dx = dy (Φ(x) + x φ(x))
//! GELU, tanh: y = x σ(v)                    dx = dy σ(v) (1 + x v′ (1 − σ(v)))          v as in `gated`
//! ReLU²:      y = max(x, 0)²                dx = 2 dy max(x, 0)
//! ```
//!
//! Φ and φ are the distribution and density of the standard normal. All `[tokens, intermediate]` in the compute dtype;
//! arithmetic is f32, rounded once. Φ is exact to 10⁻⁷: Abramowitz and Stegun, *Handbook of Mathematical Functions*, 7.1.26.
//!
//! So et al., *Primer* (<https://arxiv.org/abs/2109.08668>), for the square of ReLU.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn_tensor::{Tensor, backend::Backend};

/// What every number goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// The Gaussian error linear unit (`gelu`).
    Gelu,
    /// The same in its tanh approximation (`gelu_new`, `gelu_fast`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// The square of what is above zero (`relu2`).
    ReluSquared,
}

impl Function {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Gelu, Self::GeluTanh, Self::ReluSquared];
}

/// 1 / √2, and 1 / √(2π).
const ROOT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
const DENSITY: f32 = 0.398_942_3;
/// Abramowitz and Stegun's p, and half of a₁ … a₅.
const ERF: [f32; 6] = [0.327_591_1, 0.127_414_8, -0.142_248_37, 0.710_706_9, -0.726_576_03, 0.530_702_7];

/// The activation on a backend.
pub trait ActivationOps: Backend {
    /// [`activation`].
    fn activation(function: Function, x: &Tensor<Self, 2>) -> Tensor<Self, 2>;

    /// [`activation_backward`].
    fn activation_backward(function: Function, x: Tensor<Self, 2>, dy: Tensor<Self, 2>) -> Tensor<Self, 2>;
}

/// `function(x)`, element by element.
///
/// # Panics
/// If the dtype is none of f32, bf16, f16.
pub fn activation<B: ActivationOps>(function: Function, x: &Tensor<B, 2>) -> Tensor<B, 2> {
    B::activation(function, x)
}

/// The gradient of `x` for upstream `dy`; written over `x` where this call is its only holder.
///
/// # Panics
/// As [`activation`], and if the operands differ in shape or dtype.
pub fn activation_backward<B: ActivationOps>(
    function: Function,
    x: Tensor<B, 2>,
    dy: Tensor<B, 2>,
) -> Tensor<B, 2> {
    assert_eq!(x.dims(), dy.dims(), "activation: the operands differ in shape");
    assert_eq!(x.dtype(), dy.dtype(), "activation: the operands differ in dtype");
    B::activation_backward(function, x, dy)
}
