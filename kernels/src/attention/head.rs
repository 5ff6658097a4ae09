//! One head of queries, keys or values: its rows, and what products read of them.

use std::ops::Range;

use crate::cpu::matmul::{Columns, PackedColumns, PackedRows, RowSource, Side, Stored};
use crate::cpu::scalar::Scalar;

/// One head of a tensor `[rows, heads, head_dim]`.
pub(super) struct Head<'a, T> {
    values: &'a [T],
    stride: usize,
    pub(super) head_dim: usize,
}

impl<'a, T: Scalar> Head<'a, T> {
    pub(super) fn new(values: &'a [T], heads: usize, head_dim: usize, head: usize) -> Self {
        Self { values: &values[head * head_dim..], stride: heads * head_dim, head_dim }
    }

    pub(super) fn row(&self, row: usize) -> &'a [T] {
        &self.values[row * self.stride..][..self.head_dim]
    }

    /// Rows as a right operand.
    pub(super) fn columns(&self, rows: Range<usize>, side: Side) -> Columns<'a> {
        let values = self.values.get(rows.start * self.stride..).unwrap_or(&[]);
        let shape = [rows.len(), self.head_dim];
        Columns::strided(Stored::of::<T>(values), shape, self.stride, side)
    }

    /// Rows as a left operand.
    pub(super) fn pack(&self, rows: Range<usize>, packed: &mut PackedRows) {
        let source =
            RowSource::RowMajor { values: &self.values[rows.start * self.stride..], stride: self.stride };
        packed.repack::<T, T>(rows.len(), self.head_dim, source);
    }

    /// All blocks of at most `most` of the rows `range`, packed as right operands.
    pub(super) fn blocks(&self, range: &Range<usize>, most: usize, side: Side) -> Vec<PackedColumns> {
        let blocks = range.clone().step_by(most);
        let block = |start: usize| self.columns(start..(start + most).min(range.end), side);
        blocks.map(|start| PackedColumns::pack::<T>(&block(start))).collect()
    }
}
