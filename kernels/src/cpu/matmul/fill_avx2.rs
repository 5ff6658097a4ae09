//! Packing into f32 elements with AVX2, for the instruction sets that have it and do not multiply bf16: rows of any
//! dtype, and NF4 straight from its codes.
//!
//! Both turn eight rows of eight values into eight steps of eight rows, in registers.

use std::arch::x86_64::*;
use std::ops::Range;

use half::{bf16, f16};

use super::super::isa::InstructionSet;
use super::super::scalar::Scalar;
use crate::nf4::cpu::Nf4Rows;

/// Whether the functions of this file may be called.
pub(super) fn available() -> bool {
    matches!(
        InstructionSet::current(),
        InstructionSet::Avx2 | InstructionSet::Avx512 | InstructionSet::Avx512Bf16
    )
}

fn assert_supported() {
    // The machine's best set has AVX2, if one of these is in use; a load and a comparison make that a fact of this file.
    assert!(InstructionSet::Avx2 <= InstructionSet::best(), "AVX2 is missing");
}

/// Values that eight lanes of f32 are loaded from, or rounded to.
trait Eight: Scalar {
    /// # Safety
    /// AVX2 with half-precision conversions is there, and eight values are readable.
    unsafe fn load_eight(from: *const Self) -> __m256;
    /// The nearest value, ties to even, in f32; not for NaN.
    ///
    /// # Safety
    /// AVX2 with half-precision conversions is there.
    unsafe fn round_eight(values: __m256) -> __m256;
}

impl Eight for f32 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_eight(from: *const Self) -> __m256 {
        // SAFETY: the caller answers for the values.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn round_eight(values: __m256) -> __m256 {
        values
    }
}

impl Eight for bf16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_eight(from: *const Self) -> __m256 {
        // SAFETY: the caller answers for the values.
        let words = unsafe { _mm_loadu_si128(from.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(words)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn round_eight(values: __m256) -> __m256 {
        let bits = _mm256_castps_si256(values);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
    }
}

impl Eight for f16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_eight(from: *const Self) -> __m256 {
        // SAFETY: the caller answers for the values.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn round_eight(values: __m256) -> __m256 {
        _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values))
    }
}

/// Calls `$call` with `$kind` set to the dtype of `$scalar`.
macro_rules! with_eight {
    ($scalar:ident, $kind:ident => $call:expr) => {
        match <$scalar as Scalar>::DTYPE {
            burn_tensor::DType::BF16 => {
                type $kind = bf16;
                $call
            }
            burn_tensor::DType::F16 => {
                type $kind = f16;
                $call
            }
            _ => {
                type $kind = f32;
                $call
            }
        }
    };
}

/// Packs `rows` rows of `values`, `stride` apart, columns `block`, into `[index][row]`, the steps of the output `step`
/// elements apart. Returns how many columns it packed: all but the last few.
pub(super) fn transpose_rows<S: Scalar>(
    values: &[S],
    stride: usize,
    rows: usize,
    block: Range<usize>,
    out: &mut [u32],
    step: usize,
) -> usize {
    assert_supported();
    let columns = block.len() / 8 * 8;
    if rows == 0 || columns == 0 {
        return 0;
    }
    assert!((rows - 1) * stride + block.end <= values.len() && rows <= step);
    assert!((columns - 1) * step + rows <= out.len());
    with_eight!(S, K => {
        let values: &[K] = bytemuck::cast_slice(&values[block.start..]);
        // SAFETY: the machine has the set; the reads end within `values`, the writes within `out`.
        unsafe { transposed::<K>(values.as_ptr(), stride, rows, columns, out.as_mut_ptr().cast(), step) }
    });
    columns
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn transposed<K: Eight>(
    values: *const K,
    stride: usize,
    rows: usize,
    columns: usize,
    out: *mut f32,
    step: usize,
) {
    // SAFETY: the caller answers for the bounds; stores are masked to the rows.
    unsafe {
        for first in (0..rows).step_by(8) {
            let here = (rows - first).min(8);
            let lanes = lanes(here);
            for column in (0..columns).step_by(8) {
                let mut block = [_mm256_setzero_ps(); 8];
                for (row, block) in block.iter_mut().enumerate().take(here) {
                    *block = K::load_eight(values.add((first + row) * stride + column));
                }
                put(transpose(block), out.add(column * step + first), step, here, lanes);
            }
        }
    }
}

/// The first `count` of eight lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn lanes(count: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// Writes the first `count` lanes of eight steps.
///
/// # Safety
/// `out` takes them; `lanes` are those lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn put(steps: [__m256; 8], out: *mut f32, step: usize, count: usize, lanes: __m256i) {
    for (index, values) in steps.into_iter().enumerate() {
        // SAFETY: the caller answers for the places.
        unsafe {
            match count {
                8 => _mm256_storeu_ps(out.add(index * step), values),
                _ => _mm256_maskstore_ps(out.add(index * step), lanes, values),
            }
        }
    }
}

/// An 8 × 8 transpose.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transpose(rows: [__m256; 8]) -> [__m256; 8] {
    let mut a = rows;
    for i in 0..4 {
        a[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..2 {
        for half in 0..2 {
            let (x, y) = (a[4 * i + half], a[4 * i + 2 + half]);
            b[4 * i + 2 * half] = _mm256_shuffle_ps::<0b01_00_01_00>(x, y);
            b[4 * i + 2 * half + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(x, y);
        }
    }
    let mut out = b;
    for j in 0..4 {
        out[j] = _mm256_permute2f128_ps::<0x20>(b[j], b[4 + j]);
        out[4 + j] = _mm256_permute2f128_ps::<0x31>(b[j], b[4 + j]);
    }
    out
}

/// Where the parts of an NF4 matrix are, for the loops below.
struct Parts<'a> {
    codes: &'a [u8],
    absmax: &'a [f32],
    shift: u32,
    columns: usize,
    codebook: [f32; 16],
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

    /// The scale of the block of weight number `flat`.
    #[inline(always)]
    fn scale(&self, flat: usize) -> f32 {
        self.absmax[flat >> self.shift]
    }
}

/// Packs rows `across` of W, columns `block`, into the columns of a panel `[index][width]`, rounded to `C`.
///
/// Needs runs of 8 weights with one absmax, and a `block` of whole ones.
pub(super) fn nf4_transposed<C: Scalar>(
    rows: &Nf4Rows<'_>,
    across: Range<usize>,
    block: Range<usize>,
    width: usize,
    out: &mut [u32],
) {
    assert_supported();
    let parts = Parts::new(rows);
    assert!(block.start.is_multiple_of(8) && block.end.is_multiple_of(8) && block.end <= parts.columns);
    assert!(across.end <= rows.shape[0] && across.len() <= width && out.len() >= block.len() * width);
    with_eight!(C, K => {
        // SAFETY: the machine has the set; the bounds asserted above keep reads and writes inside.
        unsafe { parts.transposed::<K>(across, block, width, out.as_mut_ptr().cast()) }
    });
}

/// Packs columns `across` of W, rows `block`, into the columns of a panel `[index][width]`, rounded to `C`.
///
/// Needs runs of 8 weights with one absmax, and an `across` of whole ones.
pub(super) fn nf4_plain<C: Scalar>(
    rows: &Nf4Rows<'_>,
    across: Range<usize>,
    block: Range<usize>,
    width: usize,
    out: &mut [u32],
) {
    assert_supported();
    let parts = Parts::new(rows);
    assert!(across.start.is_multiple_of(8) && across.end.is_multiple_of(8) && across.end <= parts.columns);
    assert!(block.end <= rows.shape[0] && across.len() <= width && out.len() >= block.len() * width);
    with_eight!(C, K => {
        // SAFETY: as above.
        unsafe { parts.plain::<K>(across, block, width, out.as_mut_ptr().cast()) }
    });
}

/// The codebook in two registers, and where the codes of eight weights are in their four bytes.
#[derive(Clone, Copy)]
struct Book {
    low: __m256,
    high: __m256,
    shifts: __m256i,
}

impl Parts<'_> {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn book(&self) -> Book {
        // SAFETY: two halves of sixteen numbers.
        let (low, high) = unsafe {
            (_mm256_loadu_ps(self.codebook.as_ptr()), _mm256_loadu_ps(self.codebook.as_ptr().add(8)))
        };
        Book { low, high, shifts: _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24) }
    }

    /// Eight weights from number `flat` on, an even one, times `scale`.
    ///
    /// # Safety
    /// Their codes are there.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight<K: Eight>(&self, book: Book, flat: usize, scale: __m256) -> __m256 {
        // SAFETY: four bytes hold the codes of eight weights.
        unsafe {
            let bytes = self.codes.as_ptr().add(flat / 2).cast::<i32>().read_unaligned();
            let codes = _mm256_srlv_epi32(_mm256_set1_epi32(bytes), book.shifts);
            // The permutations look at three bits alone, the choice between them at the sign.
            let (low, high) =
                (_mm256_permutevar8x32_ps(book.low, codes), _mm256_permutevar8x32_ps(book.high, codes));
            let fourth = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
            K::round_eight(_mm256_mul_ps(_mm256_blendv_ps(low, high, fourth), scale))
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn transposed<K: Eight>(
        &self,
        across: Range<usize>,
        block: Range<usize>,
        width: usize,
        out: *mut f32,
    ) {
        // SAFETY: the caller answers for the bounds.
        unsafe {
            let book = self.book();
            for first in across.clone().step_by(8) {
                let here = (across.end - first).min(8);
                let lanes = lanes(here);
                for column in block.clone().step_by(8) {
                    let mut rows = [_mm256_setzero_ps(); 8];
                    for (row, values) in rows.iter_mut().enumerate().take(here) {
                        let flat = (first + row) * self.columns + column;
                        *values = self.eight::<K>(book, flat, _mm256_set1_ps(self.scale(flat)));
                    }
                    let out = out.add((column - block.start) * width + first - across.start);
                    put(transpose(rows), out, width, here, lanes);
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn plain<K: Eight>(&self, across: Range<usize>, block: Range<usize>, width: usize, out: *mut f32) {
        // SAFETY: the caller answers for the bounds.
        unsafe {
            let book = self.book();
            for row in block.clone() {
                for column in across.clone().step_by(8) {
                    let flat = row * self.columns + column;
                    let values = self.eight::<K>(book, flat, _mm256_set1_ps(self.scale(flat)));
                    _mm256_storeu_ps(out.add((row - block.start) * width + column - across.start), values);
                }
            }
        }
    }
}
