//! The gated activation of Llama's feed-forward block.
//!
//! ```text
//! s = σ(gate)          y = gate · s · up
//! dgate = dy · up · s · (1 + gate · (1 − s))          dup = dy · gate · s
//! ```
//!
//! All `[tokens, intermediate]` in the compute dtype; arithmetic is f32, rounded once.
//!
//! Shazeer, *GLU Variants Improve Transformer* (<https://arxiv.org/abs/2002.05202>).

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn::tensor::{Tensor, backend::Backend};

/// The gated activation on a backend.
pub trait SwigluOps: Backend {
    /// [`swiglu`].
    fn swiglu(gate: &Tensor<Self, 2>, up: &Tensor<Self, 2>) -> Tensor<Self, 2>;

    /// [`swiglu_backward`].
    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>);
}

/// `silu(gate) · up`, element by element.
///
/// # Panics
/// If the operands differ in shape or dtype, or the dtype is none of f32, bf16, f16.
pub fn swiglu<B: SwigluOps>(gate: &Tensor<B, 2>, up: &Tensor<B, 2>) -> Tensor<B, 2> {
    assert_eq!(gate.dims(), up.dims(), "swiglu: gate and up differ in shape");
    assert_eq!(gate.dtype(), up.dtype(), "swiglu: gate and up differ in dtype");
    B::swiglu(gate, up)
}

/// The gradients of gate and up for upstream `dy`; in their place where nobody else holds them.
///
/// # Panics
/// As [`swiglu`].
pub fn swiglu_backward<B: SwigluOps>(
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
    dy: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    for other in [&up, &dy] {
        assert_eq!(gate.dims(), other.dims(), "swiglu: gate, up and dy differ in shape");
        assert_eq!(gate.dtype(), other.dtype(), "swiglu: gate, up and dy differ in dtype");
    }
    B::swiglu_backward(gate, up, dy)
}
