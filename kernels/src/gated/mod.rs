//! The gated activation of a feed-forward block.
//!
//! ```text
//! s = σ(v)          y = gate · s · up
//! dgate = dy · up · s · (1 + gate · v′ · (1 − s))          dup = dy · gate · s
//!
//! SiLU:  v = gate                                 v′ = 1
//! GELU:  v = 2 √(2/π) (gate + 0.044715 gate³)     v′ = 2 √(2/π) (1 + 0.134145 gate²)
//!
//! Sigmoid:  y = s · up          dgate = dy · up · s · (1 − s)          dup = dy · s          v = gate
//!
//! Clamped:  as SiLU with v = 1.702 gate, of min(gate, 7) in place of gate and 1 + clamp(up, −7, 7) in place of up; beyond
//!           the limits the gradient is 0
//! ```
//!
//! GELU is its tanh approximation: ½ (1 + tanh u) = σ(2u). All `[tokens, intermediate]` in the compute dtype; arithmetic is
//! f32, rounded once.
//!
//! Shazeer, *GLU Variants Improve Transformer* (<https://arxiv.org/abs/2002.05202>); Hendrycks and Gimpel, *Gaussian Error
//! Linear Units* (<https://arxiv.org/abs/1606.08415>).

mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub mod reference;

use burn_tensor::{Tensor, backend::Backend};

/// What the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · σ(x): Llama's (`silu`).
    Silu,
    /// The Gaussian error linear unit in its tanh approximation: Gemma's (`gelu_pytorch_tanh`).
    GeluTanh,
    /// σ(x): a gate on the output of attention.
    Sigmoid,
    /// x · σ(1.702 x) of a clamped gate, times a clamped up and one more: gpt-oss'.
    Clamped,
}

/// What the clamped activation's σ multiplies its gate by.
pub const CLAMPED_FACTOR: f32 = 1.702;
/// What its gate is at most, and the size of its up.
pub const CLAMPED_LIMIT: f32 = 7.0;

/// GELU's v is x · (`GELU_LINEAR` + `GELU_CUBIC` · x²).
const GELU_LINEAR: f32 = 1.595_769;
const GELU_CUBIC: f32 = 0.071_354_814;
/// From this magnitude on GELU's σ(v) is 0 or 1 in f32: v is computed no further, lest x³ overflow.
const GELU_SATURATED: f32 = 16.0;

/// GELU's v, and x · v′, as far as they matter.
#[inline(always)]
pub(crate) fn gelu_argument(x: f32) -> (f32, f32) {
    let x = x.clamp(-GELU_SATURATED, GELU_SATURATED);
    let cubic = GELU_CUBIC * x * x;
    (x * (GELU_LINEAR + cubic), x * (GELU_LINEAR + 3.0 * cubic))
}

/// The gated activation on a backend.
pub trait GatedOps: Backend {
    /// [`gated`].
    fn gated(activation: Activation, gate: &Tensor<Self, 2>, up: &Tensor<Self, 2>) -> Tensor<Self, 2>;

    /// [`gated_backward`].
    fn gated_backward(
        activation: Activation,
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>);
}

/// `activation(gate) · up`, element by element.
///
/// # Panics
/// If the operands differ in shape or dtype, or the dtype is none of f32, bf16, f16.
pub fn gated<B: GatedOps>(activation: Activation, gate: &Tensor<B, 2>, up: &Tensor<B, 2>) -> Tensor<B, 2> {
    check(gate, up);
    B::gated(activation, gate, up)
}

/// The gradients of gate and up for upstream `dy`; written over them where this call is their only holder.
///
/// # Panics
/// As [`gated`].
pub fn gated_backward<B: GatedOps>(
    activation: Activation,
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
    dy: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    check(&gate, &up);
    check(&gate, &dy);
    B::gated_backward(activation, gate, up, dy)
}

fn check<B: Backend>(gate: &Tensor<B, 2>, other: &Tensor<B, 2>) {
    assert_eq!(gate.dims(), other.dims(), "gated activation: the operands differ in shape");
    assert_eq!(gate.dtype(), other.dtype(), "gated activation: the operands differ in dtype");
}
