//! The right operand: a stored matrix, dense or NF4, read as panels of packed columns, made on demand in a cache.
//!
//! The stored matrix is `[out, in]`. A linear layer multiplies by its transpose (the reduction runs along a row), the
//! gradient of its input by the matrix as it is (the reduction runs from row to row).

use std::ops::Range;

use half::{bf16, f16};

use super::super::pool::{self, Buffer};
use super::super::scalar::{Scalar, round_as, widen};
use super::super::vectorized;
use super::kernel::{Element, Kernel};
use super::rows::{interleave, pack_pairs, pack_rows};
use super::select::Kernels;
use super::stored::Stored;

/// Which way round a stored matrix enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// `· Wᵀ`: a linear layer's output.
    Transposed,
    /// `· W`: the gradient of its input.
    Plain,
}

/// A right operand.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) stored: Stored<'a>,
    /// Rows and columns of the stored matrix.
    pub(crate) shape: [usize; 2],
    /// Values from one row of the stored matrix to the next.
    pub(crate) stride: usize,
    pub(crate) side: Side,
    /// Multiplies every value, before it is rounded.
    pub(crate) factor: f32,
    /// The row of the stored matrix that is this operand's first.
    first: usize,
}

impl<'a> Columns<'a> {
    /// A matrix without gaps, as it is or transposed.
    pub(crate) fn new(stored: Stored<'a>, shape: [usize; 2], side: Side) -> Self {
        Self::strided(stored, shape, shape[1], side)
    }

    /// A matrix whose rows are `stride` values apart.
    pub(crate) fn strided(stored: Stored<'a>, shape: [usize; 2], stride: usize, side: Side) -> Self {
        Self { stored, shape, stride, side, factor: 1.0, first: 0 }
    }

    /// Some rows of the stored matrix alone.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.shape[0], "product: rows {rows:?} of {}", self.shape[0]);
        Self { shape: [rows.len(), self.shape[1]], first: self.first + rows.start, ..self }
    }

    /// The same, every value multiplied.
    pub(crate) fn times(self, factor: f32) -> Self {
        Self { factor: self.factor * factor, ..self }
    }

    /// Length of the reduction.
    pub(crate) fn depth(&self) -> usize {
        match self.side {
            Side::Transposed => self.shape[1],
            Side::Plain => self.shape[0],
        }
    }

    /// Columns of the product.
    pub(crate) fn width(&self) -> usize {
        match self.side {
            Side::Transposed => self.shape[0],
            Side::Plain => self.shape[1],
        }
    }

    /// Writes one panel: the columns from `column` on, as many as the kernel takes (zeros past the last), and the
    /// indices `block` of the reduction, rounded to `C`. `out` is exactly as long.
    pub(super) fn panel<C: Scalar>(
        &self,
        kernel: &Kernel,
        column: usize,
        block: Range<usize>,
        out: &mut [u32],
    ) {
        let across = column..(column + kernel.columns).min(self.width());
        if across.len() < kernel.columns {
            out.fill(0);
        }
        let further = |range: Range<usize>| range.start + self.first..range.end + self.first;
        let (across, block) = match self.side {
            Side::Transposed => (further(across), block),
            Side::Plain => (across, further(block)),
        };
        #[cfg(target_arch = "x86_64")]
        if kernel.element == Element::Bf16Pair && self.factor == 1.0 {
            use super::fill_avx512 as fast;
            let width = kernel.columns;
            match (&self.stored, self.side) {
                (Stored::Bf16(values), Side::Transposed) => {
                    return fast::transpose_rows(values, self.stride, across, block, width, out);
                }
                (Stored::Bf16(values), Side::Plain) if across.len() == width => {
                    return fast::interleave_rows(values, self.stride, across, block, width, out);
                }
                (Stored::Nf4(rows), Side::Transposed)
                    if rows.has_runs_of(32) && block.start.is_multiple_of(32) =>
                {
                    return fast::nf4_transposed(rows, across, block, width, out);
                }
                (Stored::Nf4(rows), Side::Plain)
                    if rows.has_runs_of(16) && across.start.is_multiple_of(16) =>
                {
                    return fast::nf4_plain(rows, across, block, width, out);
                }
                _ => {}
            }
        }
        #[cfg(target_arch = "x86_64")]
        if let (Stored::Nf4(rows), Element::F32) = (&self.stored, kernel.element)
            && self.factor == 1.0
            && super::fill_avx2::available()
            && rows.has_runs_of(8)
        {
            let whole = |range: &Range<usize>| range.start.is_multiple_of(8) && range.end.is_multiple_of(8);
            match self.side {
                Side::Transposed if whole(&block) => {
                    return super::fill_avx2::nf4_transposed::<C>(rows, across, block, kernel.columns, out);
                }
                Side::Plain if whole(&across) => {
                    return super::fill_avx2::nf4_plain::<C>(rows, across, block, kernel.columns, out);
                }
                _ => {}
            }
        }
        match self.stored {
            Stored::F32(values) => self.dense::<f32, C>(values, kernel, across, block, out),
            Stored::Bf16(values) => self.dense::<bf16, C>(values, kernel, across, block, out),
            Stored::F16(values) => self.dense::<f16, C>(values, kernel, across, block, out),
            Stored::Nf4(rows) => {
                let (stored_rows, stored_columns) = self.stored_ranges(across.clone(), block.clone());
                let width = stored_columns.len();
                let mut tile = pool::take::<f32>(stored_rows.len() * width);
                rows.fill(stored_rows, stored_columns, &mut tile);
                self.scale_and_round::<C>(&mut tile);
                self.arrange::<f32, C>(&tile, width, 0..across.len(), 0..block.len(), kernel, out);
            }
        }
    }

    fn dense<S: Scalar, C: Scalar>(
        &self,
        values: &[S],
        kernel: &Kernel,
        across: Range<usize>,
        block: Range<usize>,
        out: &mut [u32],
    ) {
        if self.factor == 1.0 {
            return self.arrange::<S, C>(values, self.stride, across, block, kernel, out);
        }
        let (rows, columns) = self.stored_ranges(across.clone(), block.clone());
        let width = columns.len();
        let mut tile = pool::take::<f32>(rows.len() * width);
        for (row, tile) in rows.zip(tile.chunks_exact_mut(width.max(1))) {
            widen(&values[row * self.stride..][columns.clone()], tile);
        }
        self.scale_and_round::<C>(&mut tile);
        self.arrange::<f32, C>(&tile, width, 0..across.len(), 0..block.len(), kernel, out);
    }

    fn arrange<S: Scalar, C: Scalar>(
        &self,
        values: &[S],
        stride: usize,
        across: Range<usize>,
        block: Range<usize>,
        kernel: &Kernel,
        out: &mut [u32],
    ) {
        match self.side {
            Side::Transposed => {
                let values = &values[across.start * stride..];
                let count = across.len();
                match kernel.element {
                    Element::F32 => pack_rows::<S, C>(values, stride, count, block, out, kernel.columns),
                    Element::Bf16Pair => pack_pairs::<S>(values, stride, count, block, out, kernel.columns),
                }
            }
            Side::Plain => {
                interleave::<S, C>(values, stride, block, across, kernel.columns, kernel.element, out)
            }
        }
    }

    /// Rows and columns of the stored matrix that a panel is made of.
    fn stored_ranges(&self, across: Range<usize>, block: Range<usize>) -> (Range<usize>, Range<usize>) {
        match self.side {
            Side::Transposed => (across, block),
            Side::Plain => (block, across),
        }
    }

    fn scale_and_round<C: Scalar>(&self, tile: &mut [f32]) {
        if self.factor != 1.0 {
            scale(tile, self.factor);
        }
        if !C::IS_F32 {
            round_as::<C>(tile);
        }
    }
}

/// A right operand packed once, to be multiplied many times on one thread: `[panel][step][column]`.
pub(crate) struct PackedColumns {
    pub(super) data: Buffer<u32>,
    pub(super) kernel: &'static Kernel,
    pub(super) steps: usize,
    depth: usize,
    width: usize,
}

impl PackedColumns {
    /// Packs `columns`, rounded to `C`.
    pub(crate) fn pack<C: Scalar>(columns: &Columns<'_>) -> Self {
        let mut packed =
            Self { data: pool::take(0), kernel: Kernels::of::<C>().wide, steps: 0, depth: 0, width: 0 };
        packed.repack::<C>(columns);
        packed
    }

    /// [`Self::pack`] into the buffer of an earlier use.
    pub(crate) fn repack<C: Scalar>(&mut self, columns: &Columns<'_>) {
        let (depth, width) = (columns.depth(), columns.width());
        self.kernel = Kernels::of::<C>().for_columns(width);
        (self.depth, self.width, self.steps) = (depth, width, depth.div_ceil(self.kernel.element.indices()));
        let panel = self.steps * self.kernel.columns;
        let length = panel * width.div_ceil(self.kernel.columns);
        if self.data.len() < length {
            self.data = pool::take(length);
        }
        for (index, out) in self.data[..length].chunks_exact_mut(panel.max(1)).enumerate() {
            columns.panel::<C>(self.kernel, index * self.kernel.columns, 0..depth, out);
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The steps of panel number `panel`, and the elements of a step.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "tiles by hand are x86-64's"))]
    pub(crate) fn panel_values(&self, panel: usize) -> (&[u32], usize) {
        let columns = self.kernel.columns;
        (&self.data[panel * self.steps * columns..][..self.steps * columns], columns)
    }
}

vectorized! {
    fn scale(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }
}
