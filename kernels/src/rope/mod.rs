//! Rotary position embedding, the "rotate half" pairing of Hugging Face checkpoints.
//!
//! With a table of width `w` (half the rotated dimensions) and position p of the token:
//!
//! ```text
//! y[i]     = x[i] · cos[p, i] − x[i + w] · sin[p, i]
//! y[i + w] = x[i + w] · cos[p, i] + x[i] · sin[p, i]          i < w
//! ```
//!
//! Dimensions from `2w` on pass through (a partial rotary factor). Scalings of the frequencies and of the result
//! (linear, dynamic, llama3, yarn) are in the table, which the caller makes. Arithmetic is f32. The backward is the
//! transpose: the same with `−sin`; it keeps nothing but table and positions.
//!
//! Su et al., *RoFormer* (<https://arxiv.org/abs/2104.09864>).

pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub mod reference;

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::backend::KernelBackend;

/// Cosines and sines by position. Cloning shares the storage.
#[derive(Clone, Debug)]
pub struct RotaryTable<B: Backend> {
    /// `[positions, rotated dimensions / 2]`, f32.
    pub cos: Tensor<B, 2>,
    /// Like `cos`.
    pub sin: Tensor<B, 2>,
}

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the position's angle.
    Forward,
    /// By the opposite angle: the gradient of a forward rotation.
    Backward,
}

/// Rotates every head of every token to its position, or a gradient back from it; in place where nobody else holds
/// `x`.
///
/// # Shapes
/// `x` `[tokens, heads, head_dim]`, `position_ids` `[tokens]` (each below the table's length), result like `x`,
/// dtype included.
///
/// # Panics
/// If shapes do not fit, a position is outside the table, or the dtype of `x` is none of f32, bf16, f16.
pub fn rope<B: KernelBackend>(
    x: Tensor<B, 3>,
    table: &RotaryTable<B>,
    position_ids: &Tensor<B, 1, Int>,
    direction: Direction,
) -> Tensor<B, 3> {
    let [tokens, _, head_dim] = x.dims();
    assert_eq!(table.cos.dims(), table.sin.dims(), "rope: cosines and sines differ in shape");
    assert!(
        2 * table.cos.dims()[1] <= head_dim,
        "rope: a table {:?} for heads of {head_dim}",
        table.cos.dims()
    );
    assert_eq!(position_ids.dims(), [tokens], "rope: one position per token");
    B::rope(x, table, position_ids, direction)
}
