//! The left operand, packed: read by the microkernel strictly forwards.
//!
//! Layout `[block of the reduction][tile of rows][step][row]`: one block of all rows is contiguous, so that a long
//! reduction does not fight over cache sets. Packed once, multiplied by any number of columns.

use std::ops::Range;

use half::bf16;

use super::super::disjoint::Disjoint;
use super::super::pool::{self, Buffer};
use super::super::scalar::{Scalar, narrow};
use super::super::{parallel, vectorized};
use super::blocks::{Blocks, Tile, tile_range};
use super::kernel::Element;
use super::select::Kernels;

/// A matrix `[rows, depth]` to be packed.
#[derive(Clone, Copy)]
pub(crate) enum RowSource<'a, S> {
    /// Row after row, `stride` values apart.
    RowMajor { values: &'a [S], stride: usize },
    /// The transpose of a matrix `[depth, rows]` whose rows are `stride` values apart.
    Transposed { values: &'a [S], stride: usize },
}

/// A packed matrix `[rows, depth]`.
pub(crate) struct PackedRows {
    data: Buffer<u32>,
    rows: usize,
    depth: usize,
    kernels: Kernels,
}

impl PackedRows {
    /// Packs `source`, its values rounded to `C`, on all threads.
    pub(crate) fn pack<S: Scalar, C: Scalar>(rows: usize, depth: usize, source: RowSource<'_, S>) -> Self {
        let mut packed = Self::reserve::<C>(rows, depth);
        let most = packed.kernels.wide.rows;
        let tiles = rows.div_ceil(most);
        // Eight tiles a task: some hundred rows.
        let tasks = tiles.div_ceil(8);
        let (element, blocks) = (packed.kernels.element(), Blocks::new(depth));
        let out = Disjoint::new(&mut packed.data);
        parallel::for_range(tasks, rows * depth / 4, |task| {
            for tile in task * 8..(task * 8 + 8).min(tiles) {
                let range = tile_range(rows, tiles, tile);
                for block in blocks.iter() {
                    let (start, length) = place(rows, &range, &block, element);
                    // SAFETY: each tile and block has a place of its own.
                    let out = unsafe { out.slice(start, length) };
                    pack_tile::<S, C>(source, range.clone(), block, element, out);
                }
            }
        });
        packed
    }

    /// [`Self::pack`] on this thread, into the buffer of an earlier use.
    pub(crate) fn repack<S: Scalar, C: Scalar>(
        &mut self,
        rows: usize,
        depth: usize,
        source: RowSource<'_, S>,
    ) {
        let kernels = Kernels::of::<C>();
        if self.data.len() < length(rows, depth, kernels.element()) {
            *self = Self::reserve::<C>(rows, depth);
        }
        (self.rows, self.depth, self.kernels) = (rows, depth, kernels);
        let tiles = rows.div_ceil(kernels.wide.rows);
        for tile in 0..tiles {
            let range = tile_range(rows, tiles, tile);
            for block in Blocks::new(depth).iter() {
                let (start, length) = place(rows, &range, &block, kernels.element());
                let out = &mut self.data[start..start + length];
                pack_tile::<S, C>(source, range.clone(), block, kernels.element(), out);
            }
        }
    }

    /// Room for a matrix, not packed yet.
    pub(crate) fn reserve<C: Scalar>(rows: usize, depth: usize) -> Self {
        let kernels = Kernels::of::<C>();
        Self { data: pool::take(length(rows, depth, kernels.element())), rows, depth, kernels }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    pub(crate) fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The steps of one block for the rows of one tile.
    pub(super) fn tile(&self, rows: &Range<usize>, block: &Range<usize>) -> &[u32] {
        let (start, length) = place(self.rows, rows, block, self.kernels.element());
        &self.data[start..start + length]
    }
}

/// Lets the tiles of one product be written as the left operand of the next: the output's rows are the operand's, its
/// columns the reduction.
pub(crate) struct TileWriter<'a> {
    data: Disjoint<'a, u32>,
    rows: usize,
    depth: usize,
    element: Element,
}

impl PackedRows {
    /// For the tiles of a product with as many rows as this operand has, whose width is this operand's depth.
    pub(crate) fn writer(&mut self) -> TileWriter<'_> {
        let (rows, depth, element) = (self.rows, self.depth, self.kernels.element());
        TileWriter { data: Disjoint::new(&mut self.data), rows, depth, element }
    }
}

impl TileWriter<'_> {
    /// Packs one tile; in f32 elements nothing is rounded.
    ///
    /// # Safety
    /// Tiles that are written at the same time do not overlap.
    pub(crate) unsafe fn put(&self, tile: &mut Tile<'_>) {
        let (rows, columns) = (tile.rows.clone(), tile.columns.clone());
        let size = Blocks::new(self.depth).size;
        let start = columns.start / size * size;
        let block = start..(start + size).min(self.depth);
        let indices = self.element.indices();
        let (first, _) = place(self.rows, &rows, &block, self.element);
        let first = first + (columns.start - block.start) / indices * rows.len();
        // SAFETY: tiles do not overlap, by the caller's promise; a panel of columns lies within one block, since
        // panels divide 32 columns and blocks are multiples of that.
        let out = unsafe { self.data.slice(first, columns.len().div_ceil(indices) * rows.len()) };
        const WIDTH: usize = 32;
        const HEIGHT: usize = 16;
        #[cfg(target_arch = "x86_64")]
        if self.element == Element::Bf16Pair
            && columns.len() == WIDTH
            && let Some(values) = tile.whole()
        {
            return super::fill_avx512::pack_floats(values, out);
        }
        match self.element {
            Element::Bf16Pair => {
                let mut rounded = [bf16::ZERO; HEIGHT * WIDTH];
                for ((_, values), rounded) in tile.iter_mut().zip(rounded.chunks_exact_mut(WIDTH)) {
                    narrow(values, &mut rounded[..values.len()]);
                }
                let source = RowSource::RowMajor { values: &rounded, stride: WIDTH };
                pack_tile::<bf16, bf16>(source, 0..rows.len(), 0..columns.len(), self.element, out);
            }
            Element::F32 => {
                let height = rows.len();
                for (row, values) in tile.iter_mut() {
                    let out = &mut out[row - rows.start..];
                    pack_singles::<f32, f32>(values, 0, 1, 0..values.len(), out, height);
                }
            }
        }
    }
}

/// Elements of a packed matrix. Blocks begin at multiples of two, so only the last can have half a pair.
fn length(rows: usize, depth: usize, element: Element) -> usize {
    rows * depth.div_ceil(element.indices())
}

/// Where the elements of a tile and block begin, and how many there are.
fn place(rows: usize, tile: &Range<usize>, block: &Range<usize>, element: Element) -> (usize, usize) {
    let steps = block.len().div_ceil(element.indices());
    (block.start / element.indices() * rows + tile.start * steps, steps * tile.len())
}

fn pack_tile<S: Scalar, C: Scalar>(
    source: RowSource<'_, S>,
    rows: Range<usize>,
    block: Range<usize>,
    element: Element,
    out: &mut [u32],
) {
    match source {
        RowSource::RowMajor { values, stride } => {
            let values = &values[rows.start * stride..];
            match (element, bytemuck::try_cast_slice::<S, bf16>(values)) {
                #[cfg(target_arch = "x86_64")]
                (Element::Bf16Pair, Ok(values)) if S::IS_BF16 => {
                    super::fill_avx512::pack_rows(values, stride, rows.len(), block, out);
                }
                (Element::Bf16Pair, _) => pack_pairs::<S>(values, stride, rows.len(), block, out, rows.len()),
                (Element::F32, _) => pack_rows::<S, C>(values, stride, rows.len(), block, out, rows.len()),
            }
        }
        RowSource::Transposed { values, stride } => {
            interleave::<S, C>(values, stride, block, rows.clone(), rows.len(), element, out);
        }
    }
}

/// `rows` rows of `values`, `stride` apart, to `[index][row]` in f32, the steps of the output `step` elements apart.
pub(super) fn pack_rows<S: Scalar, C: Scalar>(
    values: &[S],
    stride: usize,
    rows: usize,
    block: Range<usize>,
    out: &mut [u32],
    step: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if S::DTYPE == C::DTYPE && super::fill_avx2::available() {
        let done = super::fill_avx2::transpose_rows(values, stride, rows, block.clone(), out, step);
        if done < block.len() {
            let (block, out) = (block.start + done..block.end, &mut out[done * step..]);
            pack_singles::<S, C>(values, stride, rows, block, out, step);
        }
        return;
    }
    pack_singles::<S, C>(values, stride, rows, block, out, step);
}

vectorized! {
    /// `rows` rows of `values`, `stride` apart, to `[step][row]`, the steps of the output `step` elements apart.
    pub(super) fn pack_pairs<S: Scalar>(values: &[S], stride: usize, rows: usize, block: Range<usize>, out: &mut [u32], step: usize) {
        for row in 0..rows {
            let values = &values[row * stride..][block.clone()];
            let out = out[row..].iter_mut().step_by(step);
            for (out, pair) in out.zip(values.chunks(2)) {
                let high = pair.get(1).map_or(0, |high| high.bf16_bits());
                *out = u32::from(pair[0].bf16_bits()) | u32::from(high) << 16;
            }
        }
    }

    /// [`pack_pairs`] in f32.
    fn pack_singles<S: Scalar, C: Scalar>(values: &[S], stride: usize, rows: usize, block: Range<usize>, out: &mut [u32], step: usize) {
        for row in 0..rows {
            let values = &values[row * stride..][block.clone()];
            for (out, value) in out[row..].iter_mut().step_by(step).zip(values) {
                *out = C::from_f32(value.to_f32()).to_f32().to_bits();
            }
        }
    }

    /// Packs columns `across` of a matrix whose rows run along the reduction: `[step][across]`, each step `width`
    /// elements wide, of which the first are written. The transposed left operand and the plain right operand are
    /// the same arrangement.
    pub(super) fn interleave<S: Scalar, C: Scalar>(
        values: &[S],
        stride: usize,
        block: Range<usize>,
        across: Range<usize>,
        width: usize,
        element: Element,
        out: &mut [u32],
    ) {
        let row = |index: usize| &values[index * stride..][across.clone()];
        match element {
            Element::F32 => {
                for (index, out) in block.zip(out.chunks_exact_mut(width)) {
                    for (out, value) in out.iter_mut().zip(row(index)) {
                        *out = C::from_f32(value.to_f32()).to_f32().to_bits();
                    }
                }
            }
            Element::Bf16Pair => {
                for (index, out) in block.clone().step_by(2).zip(out.chunks_exact_mut(width)) {
                    if index + 1 < block.end {
                        for ((out, low), high) in out.iter_mut().zip(row(index)).zip(row(index + 1)) {
                            *out = u32::from(low.bf16_bits()) | u32::from(high.bf16_bits()) << 16;
                        }
                    } else {
                        for (out, low) in out.iter_mut().zip(row(index)) {
                            *out = u32::from(low.bf16_bits());
                        }
                    }
                }
            }
        }
    }
}
