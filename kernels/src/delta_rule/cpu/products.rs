//! Products of small f32 matrices on one thread: both operands are packed here, and the packed ones used again.

use std::ops::Range;

use crate::cpu::matmul::{
    Columns, PackedColumns, PackedRows, RowSource, Side, Stored, Tile, multiply_packed,
};
use crate::cpu::vectorized;

/// A left operand, packed.
pub(super) struct Left(PackedRows);

/// A right operand, packed.
pub(super) struct Right(PackedColumns);

impl Left {
    pub(super) fn new() -> Self {
        Self(PackedRows::reserve::<f32>(0, 0))
    }

    /// A matrix `[rows, depth]`, row after row.
    pub(super) fn plain(&mut self, values: &[f32], rows: usize, depth: usize) {
        self.0.repack::<f32, f32>(rows, depth, RowSource::RowMajor { values, stride: depth });
    }

    /// The transpose of a matrix `[depth, rows]`.
    pub(super) fn transposed(&mut self, values: &[f32], rows: usize, depth: usize) {
        self.0.repack::<f32, f32>(rows, depth, RowSource::Transposed { values, stride: rows });
    }
}

impl Right {
    pub(super) fn new() -> Self {
        Self(PackedColumns::pack::<f32>(&columns(&[], [0, 0], Side::Plain)))
    }

    /// A matrix `[depth, width]`, row after row.
    pub(super) fn plain(&mut self, values: &[f32], depth: usize, width: usize) {
        self.0.repack::<f32>(&columns(values, [depth, width], Side::Plain));
    }

    /// The transpose of a matrix `[width, depth]`.
    pub(super) fn transposed(&mut self, values: &[f32], depth: usize, width: usize) {
        self.0.repack::<f32>(&columns(values, [width, depth], Side::Transposed));
    }
}

fn columns(values: &[f32], shape: [usize; 2], side: Side) -> Columns<'_> {
    Columns::new(Stored::of::<f32>(values), shape, side)
}

/// `out = left · right`, or added to it; `out` is `[rows, width]`.
pub(super) fn multiply(left: &Left, right: &Right, out: &mut [f32], add: bool) {
    let (depth, width) = (left.0.depth(), right.0.width());
    multiply_part(left, right, out, add, |_| (width, 0..depth));
}

/// [`multiply`], of which only a part is needed: of some rows, so many columns, and these indices of the reduction.
pub(super) fn multiply_part(
    left: &Left,
    right: &Right,
    out: &mut [f32],
    add: bool,
    needed: impl Fn(Range<usize>) -> (usize, Range<usize>),
) {
    let width = right.0.width();
    multiply_packed(&left.0, &right.0, needed, |mut tile: Tile<'_>| {
        let column = tile.columns.start;
        for (row, values) in tile.iter_mut() {
            let out = &mut out[row * width + column..][..values.len()];
            match add {
                true => add_to(out, values),
                false => out.copy_from_slice(values),
            }
        }
    });
}

vectorized! {
    pub(super) fn add_to(values: &mut [f32], other: &[f32]) {
        for (value, other) in values.iter_mut().zip(other) {
            *value += other;
        }
    }

    pub(super) fn scale(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }

    pub(super) fn scaled(values: &[f32], factor: f32, out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = value * factor;
        }
    }

    /// x ← (1 + A)⁻¹ x for A `[rows, rows]`, of which the part below the diagonal is read.
    pub(super) fn solve(a: &[f32], rows: usize, x: &mut [f32], width: usize) {
        for row in 1..rows {
            let (before, rest) = x.split_at_mut(row * width);
            let own = &mut rest[..width];
            for (factor, other) in a[row * rows..][..row].iter().zip(before.chunks_exact(width)) {
                for (own, other) in own.iter_mut().zip(other) {
                    *own -= factor * other;
                }
            }
        }
    }

    /// x ← (1 + A)⁻ᵀ x, likewise.
    pub(super) fn solve_transposed(a: &[f32], rows: usize, x: &mut [f32], width: usize) {
        for row in (0..rows).rev() {
            let (rest, after) = x.split_at_mut((row + 1) * width);
            let own = &mut rest[row * width..];
            for (index, other) in after[..(rows - row - 1) * width].chunks_exact(width).enumerate() {
                let factor = a[(row + 1 + index) * rows + row];
                for (own, other) in own.iter_mut().zip(other) {
                    *own -= factor * other;
                }
            }
        }
    }
}
