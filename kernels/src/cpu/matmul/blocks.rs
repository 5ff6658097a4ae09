//! How a product is cut: blocks of the reduction, tiles of the output.

use std::ops::Range;

/// Longest block of a reduction, in indices. A tile of rows and a panel of columns of one block share the caches
/// next to the core.
pub(super) const BLOCK: usize = 640;

/// A reduction cut into blocks of equal length, a multiple of 32 so that none splits a run of 4-bit codes.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    depth: usize,
    pub(super) size: usize,
}

impl Blocks {
    pub(super) fn new(depth: usize) -> Self {
        let count = depth.div_ceil(BLOCK).max(1);
        Self { depth, size: depth.div_ceil(count).next_multiple_of(32).max(32) }
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.depth).step_by(self.size).map(move |start| start..(start + self.size).min(self.depth))
    }
}

/// Tile number `tile` of `tiles` equal ones.
pub(super) fn tile_range(rows: usize, tiles: usize, tile: usize) -> Range<usize> {
    tile * rows / tiles..(tile + 1) * rows / tiles
}

/// A finished tile of the output.
pub(crate) struct Tile<'a> {
    /// Rows of the output.
    pub(crate) rows: Range<usize>,
    /// Columns of the output.
    pub(crate) columns: Range<usize>,
    pub(super) values: &'a mut [f32],
    /// Values from one row to the next.
    pub(super) stride: usize,
}

impl Tile<'_> {
    /// Each row: its number in the output, and its values.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut [f32])> {
        let width = self.columns.len();
        let rows = self.values.chunks_exact_mut(self.stride).map(move |row| &mut row[..width]);
        self.rows.clone().zip(rows)
    }

    /// Each column: its number in the output, and its values.
    pub(crate) fn by_column(&self) -> impl Iterator<Item = (usize, impl Iterator<Item = f32>)> {
        let values = |index: usize| self.values[index..].iter().step_by(self.stride).copied();
        self.columns.clone().enumerate().map(move |(index, column)| (column, values(index)))
    }

    /// All values, row after row, if the tile is as wide as its kernel.
    pub(crate) fn whole(&mut self) -> Option<&mut [f32]> {
        (self.columns.len() == self.stride).then_some(&mut *self.values)
    }
}
