//! Rows that are copied, and rows that are added up: what a prompt does that two answers read.
//!
//! ```text
//! y[i, j] = Σ x[r, j]          over the rows r that are listed for i
//! ```
//!
//! `x` and `y` are in the compute dtype; sums are f32, in the order of the list, rounded once. A list of one row is a copy.
//! The gradient of x is the same sum over the [transposed](RowLists::transposed) lists: the rows of y that each row of x went
//! into.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use std::ops::Range;
use std::sync::Arc;

use burn_tensor::{Tensor, backend::Backend};

#[cfg(feature = "cube")]
use crate::cube::uploads::Uploads;

/// Sums of rows on a backend.
pub trait RowSumOps: Backend {
    /// [`row_sum`] of at least one row.
    fn row_sum(x: &Tensor<Self, 2>, lists: &RowLists) -> Tensor<Self, 2>;
}

/// For each row of a result, the rows that are added up for it. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowLists {
    offsets: Arc<[u32]>,
    rows: Arc<[u32]>,
    sources: usize,
    #[cfg(feature = "cube")]
    uploads: Uploads,
}

impl RowLists {
    fn of(offsets: Arc<[u32]>, rows: Arc<[u32]>, sources: usize) -> Self {
        Self {
            offsets,
            rows,
            sources,
            #[cfg(feature = "cube")]
            uploads: Uploads::default(),
        }
    }

    /// Copies of `ranges` of `sources` rows, one range after the other.
    ///
    /// # Panics
    /// If a range reaches beyond the rows.
    pub fn copies(ranges: impl IntoIterator<Item = Range<u32>>, sources: usize) -> Self {
        let rows: Arc<[u32]> = ranges.into_iter().flatten().collect();
        assert!(rows.iter().all(|row| (*row as usize) < sources), "row lists: a row beyond {sources}");
        Self::of((0..=rows.len() as u32).collect(), rows, sources)
    }

    /// For each source the rows of the result that it is part of, in ascending order.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let mut offsets = vec![0; self.sources + 1];
        for row in self.rows.iter() {
            offsets[*row as usize + 1] += 1;
        }
        for row in 0..self.sources {
            offsets[row + 1] += offsets[row];
        }
        let mut next = offsets.clone();
        let mut rows = vec![0; self.rows.len()];
        for result in 0..self.results() {
            for source in self.list(result) {
                let at = &mut next[*source as usize];
                rows[*at as usize] = result as u32;
                *at += 1;
            }
        }
        Self::of(offsets.into(), rows.into(), self.results())
    }

    /// Rows of the result.
    pub fn results(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Rows that are read.
    pub fn sources(&self) -> usize {
        self.sources
    }

    /// The rows that are added up for row `result`.
    pub fn list(&self, result: usize) -> &[u32] {
        &self.rows[self.offsets[result] as usize..self.offsets[result + 1] as usize]
    }
}

/// Sums of rows of `x`; 0 where none is listed.
///
/// # Shapes
/// `x` `[lists.sources(), width]`, result `[lists.results(), width]` in the dtype of `x`.
///
/// # Panics
/// If `x` has another number of rows, or its dtype is none of f32, bf16, f16.
pub fn row_sum<B: RowSumOps>(x: &Tensor<B, 2>, lists: &RowLists) -> Tensor<B, 2> {
    assert_eq!(x.dims()[0], lists.sources(), "row_sum: the lists are for another number of rows");
    B::row_sum(x, lists)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_list_names_the_rows_that_a_row_went_into() {
        let lists = RowLists::copies([0..3, 0..2, 3..4], 5);
        let transposed = lists.transposed();
        let found: Vec<&[u32]> = (0..5).map(|row| transposed.list(row)).collect();
        assert_eq!(found, [&[0, 3][..], &[1, 4], &[2], &[5], &[]]);
        assert_eq!(transposed.transposed(), lists);
    }
}
