//! The blocked product with a frozen matrix, `a · Wᵀ` or `a · W`: tiles of W are unpacked into cache-resident f32
//! scratch and multiplied there, so no dense copy of W exists.
//!
//! An output tile `[TILE_ROWS, TILE_COLUMNS]` is one task. It walks the reduction in steps of `TILE_DEPTH`, and its
//! accumulators stay in scratch until the caller's `finish` has had them (bias, adapter) and they are rounded into
//! the output. Tile sizes follow from the shapes alone: the same bits for any number of threads.

use std::ops::Range;

use half::{bf16, f16};

use super::disjoint::Disjoint;
use super::gemm::{Destination, Matrix, gemm};
use super::scalar::{Scalar, narrow, round_as, widen};
use super::{math, parallel, scratch, vectorized};
use crate::nf4::cpu::Nf4Rows;

const TILE_ROWS: usize = 512;
const TILE_COLUMNS: usize = 128;
const TILE_DEPTH: usize = 512;
/// Up to this many rows of `a` (token-by-token generation), dot products beat the packing of a matrix product.
const FEW_ROWS: usize = 4;

/// A frozen matrix, readable tile by tile.
#[derive(Clone, Copy)]
pub(crate) enum WeightRows<'a> {
    F32(&'a [f32], [usize; 2]),
    Bf16(&'a [bf16], [usize; 2]),
    F16(&'a [f16], [usize; 2]),
    /// Unpacked values are rounded by the function, to what the compute dtype can hold.
    Nf4(Nf4Rows<'a>, fn(&mut [f32])),
}

impl WeightRows<'_> {
    /// An NF4 matrix whose unpacked values are rounded to `T`, as bitsandbytes rounds them to the compute dtype.
    pub(crate) fn nf4<T: Scalar>(rows: Nf4Rows<'_>) -> WeightRows<'_> {
        fn keep(_: &mut [f32]) {}
        WeightRows::Nf4(rows, if T::as_f32(&[]).is_some() { keep } else { round_as::<T> })
    }

    pub(crate) fn shape(&self) -> [usize; 2] {
        match self {
            Self::F32(_, shape) | Self::Bf16(_, shape) | Self::F16(_, shape) => *shape,
            Self::Nf4(rows, _) => rows.shape,
        }
    }

    /// `rows` × `columns` in f32: where they are, or unpacked into `scratch`.
    fn tile<'t>(&'t self, rows: Range<usize>, columns: Range<usize>, scratch: &'t mut [f32]) -> Matrix<'t> {
        fn convert<'t, T: Scalar>(
            values: &[T],
            stride: usize,
            rows: Range<usize>,
            columns: Range<usize>,
            scratch: &'t mut [f32],
        ) -> Matrix<'t> {
            let width = columns.len();
            for (row, out) in rows.zip(scratch.chunks_exact_mut(width)) {
                widen(&values[row * stride..][columns.clone()], out);
            }
            Matrix::rows(scratch, width)
        }
        match self {
            Self::F32(values, [_, stride]) => Matrix::rows(
                &values[rows.start * stride + columns.start..(rows.end - 1) * stride + columns.end],
                *stride,
            ),
            Self::Bf16(values, [_, stride]) => convert(values, *stride, rows, columns, scratch),
            Self::F16(values, [_, stride]) => convert(values, *stride, rows, columns, scratch),
            Self::Nf4(source, round) => {
                let width = columns.len();
                let scratch = &mut scratch[..rows.len() * width];
                source.fill(rows, columns, scratch);
                round(scratch);
                Matrix::rows(scratch, width)
            }
        }
    }
}

/// Which way round the frozen matrix enters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// `a · Wᵀ`: a linear layer's output.
    Transposed,
    /// `a · W`: the gradient of its input.
    Plain,
}

/// Writes `a · Wᵀ` or `a · W` for `a` `[rows, inner]` into `out`; before a tile is rounded into place, row-major
/// without gaps, `finish(rows, columns, tile)` may change it.
pub(crate) fn product<T: Scalar>(
    a: &[f32],
    rows: usize,
    weight: &WeightRows<'_>,
    side: Side,
    out: &mut [T],
    finish: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync + Send,
) {
    let (inner, columns) = match side {
        Side::Transposed => (weight.shape()[1], weight.shape()[0]),
        Side::Plain => (weight.shape()[0], weight.shape()[1]),
    };
    assert_eq!(a.len(), rows * inner, "product: operand of another shape");
    assert_eq!(out.len(), rows * columns, "product: output of another shape");
    let out = Disjoint::new(out);
    if rows == 0 || columns == 0 {
        return;
    }
    let few = rows <= FEW_ROWS && side == Side::Transposed;
    let row_tiles = Tiles::new(rows, TILE_ROWS, 16);
    let column_tiles = Tiles::new(columns, TILE_COLUMNS, 16);
    let depth_tiles = Tiles::new(inner, TILE_DEPTH, 64);
    parallel::for_range(row_tiles.count * column_tiles.count, rows * inner * columns / 8, |task| {
        let row_range = row_tiles.range(task % row_tiles.count);
        let column_range = column_tiles.range(task / row_tiles.count);
        let (height, width) = (row_range.len(), column_range.len());
        let mut tile = scratch::take(height * width);
        let mut panel = scratch::take(width * depth_tiles.size);
        if inner == 0 || few {
            tile.fill(0.0);
        }
        for depth in (0..depth_tiles.count).map(|index| depth_tiles.range(index)) {
            let left = Matrix::rows(&a[row_range.start * inner + depth.start..], inner);
            let right = match side {
                Side::Transposed => weight.tile(column_range.clone(), depth.clone(), &mut panel),
                Side::Plain => weight.tile(depth.clone(), column_range.clone(), &mut panel),
            };
            if few {
                dots(left, right, depth.len(), width, &mut tile);
                continue;
            }
            let right = if side == Side::Transposed { right.transposed() } else { right };
            let destination = if depth.start == 0 { Destination::Replace } else { Destination::Add };
            gemm([height, depth.len(), width], &mut tile, width, destination, 1.0, left, right);
        }
        finish(row_range.clone(), column_range.clone(), &mut tile);
        for (row, tile) in row_range.zip(tile.chunks_exact(width)) {
            // SAFETY: no two tasks have an output element in common, nor two rows of one task.
            let row = unsafe { out.slice(row * columns + column_range.start, width) };
            narrow(tile, row);
        }
    });
}

vectorized! {
    /// Adds the dot products of rows of `left` with rows of `right` to `tile` `[rows of left, width]`.
    fn dots(left: Matrix<'_>, right: Matrix<'_>, depth: usize, width: usize, tile: &mut [f32]) {
        for column in 0..width {
            let right = &right.values[column * right.row_stride..][..depth];
            for (row, tile) in tile.chunks_exact_mut(width).enumerate() {
                tile[column] += math::dot(&left.values[row * left.row_stride..][..depth], right);
            }
        }
    }
}

/// A length cut into equal parts of at most `largest`, each but the last a multiple of `multiple`.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    length: usize,
    /// Length of every part but the last.
    pub(crate) size: usize,
    /// Number of parts.
    pub(crate) count: usize,
}

impl Tiles {
    pub(crate) fn new(length: usize, largest: usize, multiple: usize) -> Self {
        let parts = length.div_ceil(largest).max(1);
        let size = length.div_ceil(parts).next_multiple_of(multiple).max(multiple);
        Self { length, size, count: length.div_ceil(size) }
    }

    pub(crate) fn range(&self, index: usize) -> Range<usize> {
        index * self.size..((index + 1) * self.size).min(self.length)
    }
}
