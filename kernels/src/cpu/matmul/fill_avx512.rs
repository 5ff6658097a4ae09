//! Packing into bf16 pairs with AVX-512: rows of bf16, and NF4 straight from its codes to finished pairs.
//!
//! A transposed NF4 panel turns 16 rows of W into 16 lanes. The transposition is done on the codes: a byte already is
//! a pair of neighbouring weights, so 4 × 4 transposes of dwords move 32 weights of 16 rows with eight shuffles. A
//! plain panel pairs the same column of two rows: the codebooks of both rows, scaled, are one table of 32 words, and
//! one permutation makes 16 finished pairs.

use std::arch::x86_64::*;
use std::mem::transmute;
use std::ops::Range;

use half::bf16;

use super::super::isa::InstructionSet;
use crate::nf4::cpu::Nf4Rows;

fn assert_supported() {
    // The pairs are only asked for on this set; a load and a comparison make that a fact of this file.
    assert!(InstructionSet::Avx512Bf16 <= InstructionSet::best(), "AVX-512 with BF16 is missing");
}

/// Packs `rows` rows of `values`, `stride` apart, columns `block`, into `[step][row]`.
pub(super) fn pack_rows(values: &[bf16], stride: usize, rows: usize, block: Range<usize>, out: &mut [u32]) {
    assert_supported();
    assert!((1..=16).contains(&rows) && (rows - 1) * stride + block.end <= values.len());
    assert!(out.len() >= block.len().div_ceil(2) * rows);
    // SAFETY: the machine has the set; the reads end within `values`, the writes within `out`.
    unsafe {
        transposed_pairs(values[block.start..].as_ptr(), stride, rows, block.len(), out.as_mut_ptr(), rows)
    }
}

/// Packs rows `across` of `values`, `stride` apart, columns `block`, into the columns of a panel `[step][width]`.
pub(super) fn transpose_rows(
    values: &[bf16],
    stride: usize,
    across: Range<usize>,
    block: Range<usize>,
    width: usize,
    out: &mut [u32],
) {
    assert_supported();
    if across.is_empty() {
        return;
    }
    assert!((across.end - 1) * stride + block.end <= values.len() && across.len() <= width);
    assert!(out.len() >= block.len().div_ceil(2) * width);
    for start in (0..across.len()).step_by(16) {
        let rows = (across.len() - start).min(16);
        let values = &values[(across.start + start) * stride + block.start..];
        // SAFETY: the machine has the set; reads and writes are within the bounds asserted above.
        unsafe {
            transposed_pairs(values.as_ptr(), stride, rows, block.len(), out[start..].as_mut_ptr(), width);
        }
    }
}

/// Packs rows of 32 numbers one behind the other, rounded, into `[step][row]`.
pub(super) fn pack_floats(values: &[f32], out: &mut [u32]) {
    assert_supported();
    let rows = values.len() / 32;
    assert!((1..=16).contains(&rows) && values.len() == 32 * rows && out.len() >= 16 * rows);
    // SAFETY: the machine has the set; reads and writes are within the bounds asserted above.
    unsafe { float_pairs(values.as_ptr(), rows, out.as_mut_ptr()) }
}

/// [`pack_floats`].
///
/// # Safety
/// `rows` is from 1 to 16; `values` holds 32 numbers and `out` takes 16 elements for each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn float_pairs(values: *const f32, rows: usize, out: *mut u32) {
    // SAFETY: the caller answers for the bounds; stores are masked to the rows.
    unsafe {
        let lanes = ((1u32 << rows) - 1) as __mmask16;
        let mut loaded = [_mm512_setzero_si512(); 16];
        for (row, loaded) in loaded.iter_mut().enumerate().take(rows) {
            let values = values.add(32 * row);
            let (low, high) = (_mm512_loadu_ps(values), _mm512_loadu_ps(values.add(16)));
            *loaded = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
        }
        for (step, pairs) in transpose(loaded).iter().enumerate() {
            _mm512_mask_storeu_epi32(out.wrapping_add(step * rows).cast(), lanes, *pairs);
        }
    }
}

/// Packs columns `across` of `values`, whose rows are `stride` apart, rows `block`, into the columns of a panel
/// `[step][width]`; 16 or 32 columns, as many as the panel has.
pub(super) fn interleave_rows(
    values: &[bf16],
    stride: usize,
    across: Range<usize>,
    block: Range<usize>,
    width: usize,
    out: &mut [u32],
) {
    assert_supported();
    assert!(across.len() == width && matches!(width, 16 | 32));
    assert!(block.is_empty() || (block.end - 1) * stride + across.end <= values.len());
    assert!(out.len() >= block.len().div_ceil(2) * width);
    let values = values.as_ptr().wrapping_add(block.start * stride + across.start);
    // SAFETY: the machine has the set; reads and writes are within the bounds asserted above.
    unsafe { paired_rows(values, stride, block.len(), width, out.as_mut_ptr()) }
}

/// [`interleave_rows`].
///
/// # Safety
/// `values` holds `width` values, 16 or 32, at each of the rows' starts; `out` takes `width` elements for each pair of rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn paired_rows(values: *const bf16, stride: usize, rows: usize, width: usize, out: *mut u32) {
    /// Rows that are asked for ahead. The panel beside this one is asked for too: rows lie too far apart for the
    /// hardware to see a stream.
    const AHEAD: usize = 24;
    // SAFETY: the caller answers for the bounds.
    unsafe {
        let live = if width == 32 { u32::MAX } else { 0xffff };
        let indices = |half: u16| -> __m512i {
            let words: [u16; 32] = std::array::from_fn(|i| 16 * half + i as u16 / 2 + 32 * (i as u16 % 2));
            _mm512_loadu_si512(words.as_ptr().cast())
        };
        let (first, second) = (indices(0), indices(1));
        for row in (0..rows).step_by(2) {
            let low = values.add(row * stride);
            for further in [row + AHEAD, row + AHEAD + 1] {
                let line = values.wrapping_add(further * stride);
                _mm_prefetch::<_MM_HINT_T0>(line.cast());
                _mm_prefetch::<_MM_HINT_T1>(line.wrapping_add(width).cast());
            }
            let even = _mm512_maskz_loadu_epi16(live, low.cast());
            let odd = match row + 1 < rows {
                true => _mm512_maskz_loadu_epi16(live, low.add(stride).cast()),
                false => _mm512_setzero_si512(),
            };
            let out = out.add(row / 2 * width);
            _mm512_storeu_si512(out.cast(), _mm512_permutex2var_epi16(even, first, odd));
            if width == 32 {
                _mm512_storeu_si512(out.add(16).cast(), _mm512_permutex2var_epi16(even, second, odd));
            }
        }
    }
}

/// `[row][index]` to `[pair of indices][row]`, steps of the output `width` elements apart.
///
/// # Safety
/// `rows` is from 1 to 16; `values` holds `length` at each of the rows' starts; `out` takes `rows` elements at each of
/// the steps' starts.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn transposed_pairs(
    values: *const bf16,
    stride: usize,
    rows: usize,
    length: usize,
    out: *mut u32,
    width: usize,
) {
    // SAFETY: the caller answers for the bounds; loads and stores are masked to them.
    unsafe {
        let lanes = ((1u32 << rows) - 1) as __mmask16;
        let mut out = out;
        for start in (0..length).step_by(32) {
            let count = (length - start).min(32);
            let live = if count == 32 { u32::MAX } else { (1 << count) - 1 };
            // Rows past the last read the last; their lanes are not stored.
            let loaded: [__m512i; 16] = std::array::from_fn(|i| {
                let row = values.add(i.min(rows - 1) * stride + start);
                _mm512_maskz_loadu_epi16(live, row.cast())
            });
            if rows >= 14 {
                // Short rows at a stride defeat the hardware's prefetching: ask for the next tile's here.
                for i in 0..14 {
                    _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add((i + rows) * stride + start).cast());
                }
            }
            for pairs in transpose(loaded).iter().take(count.div_ceil(2)) {
                _mm512_mask_storeu_epi32(out.cast(), lanes, *pairs);
                out = out.wrapping_add(width);
            }
        }
    }
}

/// A 16 × 16 transpose of dwords.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = rows;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        for half in 0..2 {
            b[4 * i + 2 * half] = _mm512_unpacklo_epi64(a[4 * i + half], a[4 * i + 2 + half]);
            b[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(a[4 * i + half], a[4 * i + 2 + half]);
        }
    }
    // b[4 i + j], lane q: column 4 q + j of rows 4 i to 4 i + 3. What is left transposes lanes of 128 bits.
    let mut out = b;
    for j in 0..4 {
        let low_01 = _mm512_shuffle_i32x4::<0x44>(b[j], b[4 + j]);
        let high_01 = _mm512_shuffle_i32x4::<0xEE>(b[j], b[4 + j]);
        let low_23 = _mm512_shuffle_i32x4::<0x44>(b[8 + j], b[12 + j]);
        let high_23 = _mm512_shuffle_i32x4::<0xEE>(b[8 + j], b[12 + j]);
        out[j] = _mm512_shuffle_i32x4::<0x88>(low_01, low_23);
        out[4 + j] = _mm512_shuffle_i32x4::<0xDD>(low_01, low_23);
        out[8 + j] = _mm512_shuffle_i32x4::<0x88>(high_01, high_23);
        out[12 + j] = _mm512_shuffle_i32x4::<0xDD>(high_01, high_23);
    }
    out
}

/// Where the parts of an NF4 matrix are, for the loops below.
struct Parts<'a> {
    codes: &'a [u8],
    absmax: &'a [f32],
    /// log₂ of the weights per absmax.
    shift: u32,
    columns: usize,
    codebook: [f32; 16],
}

/// Packs rows `across` of W, columns `block`, into the columns of a panel `[step][width]`.
///
/// Needs runs of 32 weights with one absmax, a `block` that begins at a multiple of 32, and ends at one.
pub(super) fn nf4_transposed(
    rows: &Nf4Rows<'_>,
    across: Range<usize>,
    block: Range<usize>,
    width: usize,
    out: &mut [u32],
) {
    assert_supported();
    let parts = Parts::new(rows);
    assert!(block.start.is_multiple_of(32) && block.end.is_multiple_of(32) && block.end <= parts.columns);
    assert!(across.end <= rows.shape[0] && across.len() <= width && width.is_multiple_of(16));
    assert!(out.len() >= block.len() / 2 * width && out.as_ptr().cast::<u8>().align_offset(64) == 0);
    for start in (0..across.len()).step_by(16) {
        let rows = (across.len() - start).min(16);
        // SAFETY: the machine has the set; `Parts::new` checked codes and scales against the shape, and the bounds
        // asserted above keep reads and writes inside.
        unsafe {
            parts.transposed(across.start + start, rows, block.clone(), width, out[start..].as_mut_ptr())
        }
    }
}

/// Packs columns `across` of W, rows `block`, into the columns of a panel `[step][width]`.
///
/// Needs runs of 16 weights with one absmax, and an `across` that begins at a multiple of 16.
pub(super) fn nf4_plain(
    rows: &Nf4Rows<'_>,
    across: Range<usize>,
    block: Range<usize>,
    width: usize,
    out: &mut [u32],
) {
    assert_supported();
    let parts = Parts::new(rows);
    assert!(block.end <= rows.shape[0] && across.end <= parts.columns && across.len() <= width);
    assert!(across.start.is_multiple_of(16) && across.end.is_multiple_of(16) && width.is_multiple_of(16));
    assert!(out.len() >= block.len().div_ceil(2) * width && out.as_ptr().cast::<u8>().align_offset(64) == 0);
    // SAFETY: as above.
    unsafe { parts.plain(across, block, width, out.as_mut_ptr()) }
}

impl<'a> Parts<'a> {
    fn new(rows: &Nf4Rows<'a>) -> Self {
        let absmax = rows.scales();
        let weights = rows.shape[0] * rows.shape[1];
        assert!(rows.codes.len() >= weights.div_ceil(2) && absmax.len() >= weights.div_ceil(rows.block_size));
        assert!(rows.block_size.is_power_of_two());
        Self {
            codes: rows.codes,
            absmax,
            shift: rows.block_size.trailing_zeros(),
            columns: rows.shape[1],
            codebook: rows.codebook,
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn transposed(&self, first: usize, rows: usize, block: Range<usize>, width: usize, out: *mut u32) {
        // SAFETY: the caller answers for the bounds.
        unsafe {
            let book = _mm512_loadu_ps(self.codebook.as_ptr());
            let interleave = interleave();
            let mask = ((1u32 << rows) - 1) as __mmask16;
            // Rows past the last read the last one's codes; their scale is zero.
            let codes: [*const u8; 16] = std::array::from_fn(|i| {
                self.codes.as_ptr().add((first + i.min(rows - 1)) * self.columns / 2)
            });
            let first_block = (first * self.columns) >> self.shift;
            let scales = self.absmax.as_ptr().add(first_block);
            let offset = (first * self.columns - (first_block << self.shift)) as i32;
            let starts: [i32; 16] = std::array::from_fn(|i| offset + (i * self.columns) as i32);
            let starts = _mm512_loadu_si512(starts.as_ptr().cast());
            let shift = _mm_cvtsi32_si128(self.shift as i32);
            let mut out = out;
            for index in block.step_by(32) {
                let blocks =
                    _mm512_srl_epi32(_mm512_add_epi32(starts, _mm512_set1_epi32(index as i32)), shift);
                let scale = _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), mask, blocks, scales);
                let load = |i: usize| _mm_loadu_si128(codes[i].add(index / 2).cast());
                let z: [__m512i; 4] = std::array::from_fn(|i| {
                    let v = _mm512_castsi128_si512(load(i));
                    let v = _mm512_inserti32x4::<1>(v, load(i + 4));
                    let v = _mm512_inserti32x4::<2>(v, load(i + 8));
                    _mm512_inserti32x4::<3>(v, load(i + 12))
                });
                let (a, b) = (_mm512_unpacklo_epi32(z[0], z[1]), _mm512_unpackhi_epi32(z[0], z[1]));
                let (c, d) = (_mm512_unpacklo_epi32(z[2], z[3]), _mm512_unpackhi_epi32(z[2], z[3]));
                let dwords = [
                    _mm512_unpacklo_epi64(a, c),
                    _mm512_unpackhi_epi64(a, c),
                    _mm512_unpacklo_epi64(b, d),
                    _mm512_unpackhi_epi64(b, d),
                ];
                for four in dwords {
                    for byte in 0..4 {
                        // The permutation looks at the low four bits of an index alone: no masking.
                        let high = _mm512_srlv_epi32(four, _mm512_set1_epi32(8 * byte + 4));
                        let low = _mm512_srlv_epi32(four, _mm512_set1_epi32(8 * byte));
                        let even = _mm512_mul_ps(_mm512_permutexvar_ps(high, book), scale);
                        let odd = _mm512_mul_ps(_mm512_permutexvar_ps(low, book), scale);
                        let pairs: __m512i = transmute(_mm512_cvtne2ps_pbh(odd, even));
                        _mm512_store_si512(out.cast(), _mm512_permutexvar_epi16(interleave, pairs));
                        out = out.wrapping_add(width);
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx512vbmi")]
    unsafe fn plain(&self, across: Range<usize>, block: Range<usize>, width: usize, out: *mut u32) {
        // SAFETY: the caller answers for the bounds.
        unsafe {
            let book = _mm512_loadu_ps(self.codebook.as_ptr());
            // Of each qword [byte of one row, byte of the next, 0 …] the words [high, high′, low, low′].
            let control = _mm512_set1_epi64(0x0008_0000_000c_0004);
            let mut out = out;
            for row in block.clone().step_by(2) {
                let paired = row + 1 < block.end;
                let (first, second) = (row * self.columns, (row + usize::from(paired)) * self.columns);
                for (group, column) in across.clone().step_by(16).enumerate() {
                    let scale = |flat: usize| _mm512_set1_ps(*self.absmax.get_unchecked(flat >> self.shift));
                    let even = _mm512_mul_ps(book, scale(first + column));
                    let odd = if paired {
                        _mm512_mul_ps(book, scale(second + column))
                    } else {
                        _mm512_setzero_ps()
                    };
                    let table: __m512i = transmute(_mm512_cvtne2ps_pbh(odd, even));
                    let load = |flat: usize| _mm_loadl_epi64(self.codes.as_ptr().add(flat / 2).cast());
                    let bytes = _mm_unpacklo_epi8(load(first + column), load(second + column));
                    let indices = _mm512_multishift_epi64_epi8(control, _mm512_cvtepu16_epi64(bytes));
                    // (indices & 0x000f_000f) | 0x0010_0000: the odd words look into the second half of the table.
                    let indices = _mm512_ternarylogic_epi32::<0xF8>(
                        _mm512_set1_epi32(0x0010_0000),
                        indices,
                        _mm512_set1_epi32(0x000f_000f),
                    );
                    let pairs = _mm512_permutexvar_epi16(indices, table);
                    _mm512_store_si512(out.wrapping_add(16 * group).cast(), pairs);
                }
                out = out.wrapping_add(width);
            }
        }
    }
}

/// [16 low words | 16 high words] to pairs (low, high).
#[inline]
#[target_feature(enable = "avx512f")]
fn interleave() -> __m512i {
    let words: [u16; 32] = std::array::from_fn(|i| (i / 2 + 16 * (i % 2)) as u16);
    // SAFETY: reads the 64 bytes of `words`.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}
