//! Rotary position embedding.
//!
//! With a table of width `w` (half the rotated dimensions) and position p of the token:
//!
//! ```text
//! y[a] = x[a] · cos[p, i] − x[b] · sin[p, i]          halves:      a = i,  b = i + w
//! y[b] = x[b] · cos[p, i] + x[a] · sin[p, i]          neighbours:  a = 2i, b = 2i + 1          i < w
//! ```
//!
//! Dimensions from `2w` on pass through (a partial rotary factor). Scalings of the frequencies and of the result
//! (linear, dynamic, llama3, yarn) are in the table, which the caller makes. Arithmetic is f32. The backward is the
//! transpose: the same with `−sin`; it keeps nothing but table and positions.
//!
//! Su et al., *RoFormer* (<https://arxiv.org/abs/2104.09864>).

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn_tensor::{Int, Tensor, TensorData, backend::Backend};

/// Rotary embedding on a backend.
pub trait RopeOps: Backend {
    /// [`rope_all`]; every position is inside the table.
    fn rope<const N: usize>(
        x: [Tensor<Self, 3>; N],
        table: &RotaryTable<Self>,
        position_ids: &Tensor<Self, 1, Int>,
        direction: Direction,
    ) -> [Tensor<Self, 3>; N];
}

/// Dimensions of a head that are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// Each with that half the rotated width on ("rotate half"): Llama's, and most of transformers.
    Halves,
    /// Each even one with the next ("interleaved"): GPT-J, GLM, Cohere.
    Neighbours,
}

/// Cosines and sines by position, and what they rotate. Cloning shares the storage.
#[derive(Clone, Debug)]
pub struct RotaryTable<B: Backend> {
    /// `[positions, rotated dimensions / 2]`, f32.
    pub cos: Tensor<B, 2>,
    /// Like `cos`.
    pub sin: Tensor<B, 2>,
    /// Which dimensions are rotated together.
    pub pairs: Pairs,
}

/// Positions of tokens in their documents, on a device. The largest is known on the host too, so that every backend refuses
/// a table that is too short before a launch, without waiting for the device.
#[derive(Clone, Debug)]
pub struct Positions<B: Backend> {
    /// `[tokens]`.
    ids: Tensor<B, 1, Int>,
    /// One more than the largest; 0 without tokens.
    end: usize,
}

impl<B: Backend> Positions<B> {
    /// One position for each token.
    pub fn new(positions: &[u32], device: &B::Device) -> Self {
        let end = positions.iter().max().map_or(0, |last| *last as usize + 1);
        // Backends count in i32; a position beyond it is also beyond every table.
        let ids: Vec<i32> = positions.iter().map(|position| *position as i32).collect();
        Self { ids: Tensor::from_data(TensorData::new(ids, [positions.len()]), device), end }
    }
}

/// The sign of the angle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the position's angle.
    Forward,
    /// By the opposite angle: the gradient of a forward rotation.
    Backward,
}

/// Rotates every head of every token to its position, or a gradient back from it; in place where this call is
/// the only holder of `x`.
///
/// # Shapes
/// `x` `[tokens, heads, head_dim]`, `positions` of as many tokens (each below the table's length), result like `x`, dtype
/// included.
///
/// # Panics
/// If shapes do not fit, a position is outside the table, or the dtype of `x` is none of f32, bf16, f16.
pub fn rope<B: RopeOps>(
    x: Tensor<B, 3>,
    table: &RotaryTable<B>,
    positions: &Positions<B>,
    direction: Direction,
) -> Tensor<B, 3> {
    let [y] = rope_all([x], table, positions, direction);
    y
}

/// [`rope`] of several tensors at once, such as queries and keys: alike but for the number of their heads.
///
/// # Panics
/// As [`rope`], and if they differ in dtype or `head_dim`.
pub fn rope_all<B: RopeOps, const N: usize>(
    x: [Tensor<B, 3>; N],
    table: &RotaryTable<B>,
    positions: &Positions<B>,
    direction: Direction,
) -> [Tensor<B, 3>; N] {
    assert_eq!(table.cos.dims(), table.sin.dims(), "rope: cosines and sines differ in shape");
    for one in &x {
        let [tokens, _, head_dim] = one.dims();
        assert!(
            2 * table.cos.dims()[1] <= head_dim,
            "rope: a table {:?} for heads of {head_dim}",
            table.cos.dims()
        );
        assert_eq!(positions.ids.dims(), [tokens], "rope: one position per token");
        let alike = (one.dtype(), head_dim) == (x[0].dtype(), x[0].dims()[2]);
        assert!(alike, "rope: tensors rotated together differ in dtype or head_dim");
    }
    let (end, rows) = (positions.end, table.cos.dims()[0]);
    assert!(end <= rows, "rope: positions up to {} in a table of {rows}", end.saturating_sub(1));
    B::rope(x, table, &positions.ids, direction)
}
