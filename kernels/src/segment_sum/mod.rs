//! Sums over consecutive rows: of the rows' losses, one for each document.
//!
//! ```text
//! sums[s] = Σ rows[i]          offsets[s] ≤ i < offsets[s + 1]
//! ```
//!
//! The order of the additions depends on the length of a segment alone.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn_tensor::{DType, Tensor, backend::Backend};

/// Sums over segments on a backend.
pub trait SegmentOps: Backend {
    /// [`segment_sum`] of at least one segment.
    fn segment_sum(rows: &Tensor<Self, 1>, offsets: &[u32]) -> Tensor<Self, 1>;
}

/// The sum of each segment, f32 `[segments]`; 0 for an empty one.
///
/// # Shapes
/// `rows` f32 `[n]`; `offsets` begin at 0, ascend and end at n: one more than there are segments.
///
/// # Panics
/// If `rows` is not f32, or the offsets do not fit.
pub fn segment_sum<B: SegmentOps>(rows: &Tensor<B, 1>, offsets: &[u32]) -> Tensor<B, 1> {
    assert_eq!(rows.dtype(), DType::F32, "segment_sum: rows are f32");
    assert!(offsets.len() > 1 && offsets.is_sorted(), "segment_sum: offsets ascend over a segment at least");
    let ends = (offsets.first().copied(), offsets.last().map(|last| *last as usize));
    assert_eq!(ends, (Some(0), Some(rows.dims()[0])), "segment_sum: the segments do not cover the rows");
    B::segment_sum(rows, offsets)
}
