//! Rows of a stored matrix times a few vectors: each row is read once, for all of them.
//!
//! A product with few rows on its left is bound by reading the matrix on its right. The blocked product
//! (`super::matmul`) would unpack that matrix into panels first and write as much as it reads; here the values go from
//! the stored bytes to the registers that multiply them. 4-bit codes are looked up in the sixteen levels of their block,
//! rounded as the product sees them, so the numbers multiplied are those of the blocked product.
//!
//! A sum is kept in [`LANES`] running sums until [`join`] adds them, so that other terms can be added lane by lane.
//! How a row is summed follows from the shapes alone.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;
use std::sync::OnceLock;

use half::bf16;

use super::matmul::Stored;
use super::pool::{self, Buffer};
use super::scalar::{Scalar, round_as, widen};
use super::{math, vectorized};
#[cfg(target_arch = "x86_64")]
use crate::nf4::cpu::{BlockScales, Nf4Rows};

/// Most vectors.
pub(crate) const MOST: usize = 8;
/// Running sums of one dot product.
pub(crate) const LANES: usize = 16;
/// 4-bit codes are looked up in runs of this many.
const RUN: usize = 64;

/// What a kernel written by hand wants the vectors to look like.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "kernels by hand are x86-64's"))]
enum Path {
    /// Plain loops.
    Plain,
    /// Pairs of bf16.
    Pairs,
    /// f32, sixteen at a time.
    Wide,
    /// f32, eight at a time.
    Half,
}

impl Path {
    fn of<T: Scalar>() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use super::isa::InstructionSet;
            match InstructionSet::current() {
                InstructionSet::Avx512Bf16 if T::IS_BF16 => return Self::Pairs,
                InstructionSet::Avx512Bf16 | InstructionSet::Avx512 => return Self::Wide,
                InstructionSet::Avx2 => return Self::Half,
                InstructionSet::Portable | InstructionSet::Neon => {}
            }
        }
        Self::Plain
    }
}

/// The vectors, in the arrangements that the kernels read.
pub(crate) struct Vectors<'a, T> {
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "kernels by hand are x86-64's"))]
    values: &'a [T],
    count: usize,
    width: usize,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "kernels by hand are x86-64's"))]
    path: Path,
    /// f32 `[count, width]`, once a path asks for it.
    wide: OnceLock<Buffer<f32>>,
    /// Where codes are looked up by hand: of every 32 values the even ones, then the odd ones; of every 64 in bf16.
    parted: Buffer<f32>,
    parted_pairs: Buffer<bf16>,
}

impl<'a, T: Scalar> Vectors<'a, T> {
    /// `count` vectors of `width` values, one behind the other. `parted`: 4-bit rows will be multiplied too.
    pub(crate) fn new(values: &'a [T], count: usize, width: usize, parted: bool) -> Self {
        assert!(count <= MOST && values.len() == count * width, "gemv: {count} vectors of {width}");
        let path = Path::of::<T>();
        let parts = |of: bool| if parted && of && width.is_multiple_of(RUN) { values.len() } else { 0 };
        let mut vectors = Self {
            values,
            count,
            width,
            path,
            wide: OnceLock::new(),
            parted: pool::take(parts(path == Path::Wide || path == Path::Half)),
            parted_pairs: pool::take(parts(path == Path::Pairs)),
        };
        if !vectors.parted.is_empty() {
            let mut parted = std::mem::replace(&mut vectors.parted, pool::take(0));
            part(vectors.wide(), &mut parted, RUN / 2);
            vectors.parted = parted;
        }
        if let Ok(values) = bytemuck::try_cast_slice::<T, bf16>(values)
            && T::IS_BF16
        {
            part(values, &mut vectors.parted_pairs, RUN);
        }
        vectors
    }

    fn wide(&self) -> &[f32] {
        self.wide.get_or_init(|| {
            let mut wide = pool::take(self.values.len());
            widen(self.values, &mut wide);
            wide
        })
    }

    /// Writes the running sums of rows `rows` of `stored` times each vector: `lanes` is `[rows, count, LANES]`. The
    /// values of `stored` are rounded to `T`.
    pub(crate) fn times(&self, stored: &Stored<'_>, rows: Range<usize>, lanes: &mut [f32]) {
        assert_eq!(lanes.len(), rows.len() * self.count * LANES, "gemv: room for the sums");
        if self.count == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if self.by_hand(stored, rows.clone(), lanes) {
            return;
        }
        match *stored {
            Stored::F32(values) if T::IS_F32 => self.dense(values, rows, lanes),
            Stored::F32(values) => self.widened(values, rows, lanes),
            Stored::Bf16(values) => self.widened(values, rows, lanes),
            Stored::F16(values) => self.widened(values, rows, lanes),
            Stored::Nf4(packed) => {
                let mut row_values = pool::take::<f32>(self.width);
                for (row, lanes) in rows.zip(lanes.chunks_exact_mut(self.count * LANES)) {
                    packed.fill(row..row + 1, 0..self.width, &mut row_values);
                    round_as::<T>(&mut row_values);
                    dots(&row_values, self.wide(), lanes);
                }
            }
        }
    }

    fn dense(&self, values: &[f32], rows: Range<usize>, lanes: &mut [f32]) {
        for (row, lanes) in rows.zip(lanes.chunks_exact_mut(self.count * LANES)) {
            dots(&values[row * self.width..][..self.width], self.wide(), lanes);
        }
    }

    fn widened<S: Scalar>(&self, values: &[S], rows: Range<usize>, lanes: &mut [f32]) {
        let mut row_values = pool::take::<f32>(self.width);
        for (row, lanes) in rows.zip(lanes.chunks_exact_mut(self.count * LANES)) {
            widen(&values[row * self.width..][..self.width], &mut row_values);
            if S::DTYPE != T::DTYPE {
                round_as::<T>(&mut row_values);
            }
            dots(&row_values, self.wide(), lanes);
        }
    }

    /// Whether there is a kernel written by hand; it has then run.
    #[cfg(target_arch = "x86_64")]
    fn by_hand(&self, stored: &Stored<'_>, rows: Range<usize>, lanes: &mut [f32]) -> bool {
        match (self.path, stored) {
            (Path::Pairs, Stored::Bf16(values)) => {
                let Ok(vectors) = bytemuck::try_cast_slice::<T, bf16>(self.values) else { return false };
                x86::dense_pairs(values, vectors, self.width, rows, lanes);
            }
            (Path::Pairs, Stored::Nf4(packed)) if self.has_runs(packed) => {
                x86::packed_pairs(&Packed::new(packed, rows), &self.parted_pairs, self.width, lanes);
            }
            (Path::Wide, Stored::Nf4(packed)) if self.has_runs(packed) => {
                x86::packed_wide::<T>(&Packed::new(packed, rows), &self.parted, self.width, lanes);
            }
            (Path::Half, Stored::Nf4(packed)) if self.has_runs(packed) => {
                x86::packed_half::<T>(&Packed::new(packed, rows), &self.parted, self.width, lanes);
            }
            _ => return false,
        }
        true
    }

    /// Whether every run of [`RUN`] codes has one scale, and the vectors are arranged for it.
    #[cfg(target_arch = "x86_64")]
    fn has_runs(&self, packed: &Nf4Rows<'_>) -> bool {
        packed.block_size.is_power_of_two()
            && packed.block_size.is_multiple_of(RUN)
            && packed.block_scales().is_some()
            && self.width.is_multiple_of(RUN)
            && self.parted.len() + self.parted_pairs.len() == self.values.len()
    }
}

/// Rows of codes with the scales of the whole matrix.
#[cfg(target_arch = "x86_64")]
struct Packed<'a> {
    codes: &'a [u8],
    codebook: [f32; 16],
    scales: BlockScales<'a>,
    /// Runs before the first row, and the binary logarithm of runs to a block.
    first_run: usize,
    shift: u32,
}

#[cfg(target_arch = "x86_64")]
impl<'a> Packed<'a> {
    /// Of a matrix that [has runs](Vectors::has_runs).
    fn new(packed: &Nf4Rows<'a>, rows: Range<usize>) -> Self {
        let width = packed.shape[1];
        Self {
            codes: &packed.codes[rows.start * width / 2..rows.end * width / 2],
            codebook: packed.codebook,
            scales: packed.block_scales().unwrap_or(BlockScales::Plain(&[])),
            first_run: rows.start * width / RUN,
            shift: (packed.block_size / RUN).trailing_zeros(),
        }
    }

    /// Runs of one row times rows, so that a kernel can check what it is about to read.
    fn check(&self, runs: usize, rows: usize) {
        let last = (self.first_run + runs * rows).saturating_sub(1) >> self.shift;
        assert!(self.codes.len() == runs * rows * RUN / 2, "gemv: codes of {rows} rows");
        assert!(rows * runs == 0 || last < self.scales.len(), "gemv: scales of {rows} rows");
    }

    /// The scales of the runs from `first` on, counted from the first row's first one.
    ///
    /// # Safety
    /// There are such runs, as [`Self::check`] found.
    #[inline(always)]
    unsafe fn fill_scales(&self, first: usize, scales: &mut [f32]) {
        // SAFETY: as the caller promises.
        unsafe { self.scales.fill(self.first_run + first, self.shift, scales) };
    }
}

/// Adds up the running sums: `lanes` `[rows, count, LANES]` to `sums` `[count, rows]`.
pub(crate) fn join(lanes: &[f32], count: usize, sums: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if super::fast::available() {
        return x86::join(lanes, count, sums);
    }
    plain_join(lanes, count, sums);
}

/// Of every `group` values the even ones, then the odd ones.
fn part<T: Copy>(values: &[T], out: &mut [T], group: usize) {
    for (values, out) in values.chunks_exact(group).zip(out.chunks_exact_mut(group)) {
        let (even, odd) = out.split_at_mut(group / 2);
        for ((pair, even), odd) in values.chunks_exact(2).zip(even).zip(odd) {
            (*even, *odd) = (pair[0], pair[1]);
        }
    }
}

vectorized! {
    /// `row` times each vector of `vectors`, as running sums.
    fn dots(row: &[f32], vectors: &[f32], lanes: &mut [f32]) {
        for (vector, lanes) in vectors.chunks_exact(row.len().max(1)).zip(lanes.chunks_exact_mut(LANES)) {
            // Four sets of sums: additions wait for one another no more than they must.
            let mut sums = [[0.0f32; LANES]; 4];
            let (row_runs, vector_runs) = (row.chunks_exact(4 * LANES), vector.chunks_exact(4 * LANES));
            let rest = row_runs.remainder().chunks(LANES).zip(vector_runs.remainder().chunks(LANES));
            for (row, vector) in row_runs.zip(vector_runs) {
                for (set, sums) in sums.iter_mut().enumerate() {
                    let (row, vector) = (&row[set * LANES..][..LANES], &vector[set * LANES..][..LANES]);
                    for ((sum, a), b) in sums.iter_mut().zip(row).zip(vector) {
                        *sum += a * b;
                    }
                }
            }
            for (row, vector) in rest {
                for ((sum, a), b) in sums[0].iter_mut().zip(row).zip(vector) {
                    *sum += a * b;
                }
            }
            for (index, lane) in lanes.iter_mut().enumerate() {
                *lane = (sums[0][index] + sums[1][index]) + (sums[2][index] + sums[3][index]);
            }
        }
        if row.is_empty() {
            lanes.fill(0.0);
        }
    }

    /// Adds `factor · rows`, rounded to `T`, times each vector to the running sums: `rows` is `[rows, width]`, `vectors`
    /// `[count, width]`, `lanes` `[rows, count, LANES]`.
    pub(crate) fn add_dots<T: Scalar>(rows: &[f32], factor: f32, vectors: &[f32], width: usize, lanes: &mut [f32]) {
        let count = vectors.len() / width.max(1);
        for (row, lanes) in rows.chunks_exact(width.max(1)).zip(lanes.chunks_exact_mut((count * LANES).max(1))) {
            for (start, values) in row.chunks(LANES).enumerate() {
                let mut rounded = [0.0f32; LANES];
                for (rounded, value) in rounded.iter_mut().zip(values) {
                    *rounded = T::from_f32(value * factor).to_f32();
                }
                let vectors = vectors.chunks_exact(width).map(|vector| &vector[start * LANES..]);
                for (vector, lanes) in vectors.zip(lanes.chunks_exact_mut(LANES)) {
                    for ((lane, value), x) in lanes.iter_mut().zip(&rounded).zip(vector) {
                        *lane += value * x;
                    }
                }
            }
        }
    }

    fn plain_join(lanes: &[f32], count: usize, sums: &mut [f32]) {
        let rows = sums.len() / count.max(1);
        for (row, lanes) in lanes.chunks_exact((count * LANES).max(1)).enumerate() {
            for (vector, lanes) in lanes.chunks_exact(LANES).enumerate() {
                let mut all = [0.0f32; LANES];
                all.copy_from_slice(lanes);
                sums[vector * rows + row] = math::join(all);
            }
        }
    }
}
