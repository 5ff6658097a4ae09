//! The kernels of x86-64: AVX-512 with BF16, AVX-512, AVX2.
//!
//! Of two codes in a byte the high one is the even weight. A byte widened to a lane has both where a permutation of
//! sixteen levels looks for them: it reads the low four bits of an index alone. So a row needs no unpacking; the
//! vectors are parted into even and odd values instead, once.

use std::arch::x86_64::*;
use std::mem::transmute;
use std::ops::Range;

use half::bf16;

use super::{LANES, MOST, Packed, RUN};
use crate::cpu::fast::add_across;
use crate::cpu::scalar::Scalar;

/// How levels are rounded before they are multiplied.
const EXACT: u8 = 0;
const TO_BF16: u8 = 1;
const TO_F16: u8 = 2;

/// How far ahead of what is read lines are asked for, in bytes: past the end of a page, where the processor's own
/// prefetching stops.
const AHEAD: usize = 2048;

/// Asks for the line [`AHEAD`] of `place`, which may lie behind the end of the matrix.
#[inline(always)]
fn ahead<T>(place: *const T) {
    // SAFETY: a prefetch of any address is allowed.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(place.wrapping_byte_add(AHEAD).cast()) }
}

/// Calls `$kernel::<COUNT>` with the run-time number of vectors.
macro_rules! with_count {
    ($count:expr, $kernel:ident $(::<$($generic:ident),+>)?, $($argument:expr),*) => {
        match $count {
            1 => $kernel::<1 $($(, { $generic })+)?>($($argument),*),
            2 => $kernel::<2 $($(, { $generic })+)?>($($argument),*),
            3 => $kernel::<3 $($(, { $generic })+)?>($($argument),*),
            4 => $kernel::<4 $($(, { $generic })+)?>($($argument),*),
            5 => $kernel::<5 $($(, { $generic })+)?>($($argument),*),
            6 => $kernel::<6 $($(, { $generic })+)?>($($argument),*),
            7 => $kernel::<7 $($(, { $generic })+)?>($($argument),*),
            8 => $kernel::<8 $($(, { $generic })+)?>($($argument),*),
            count => unreachable!("{count} vectors"),
        }
    };
}

/// Calls `$kernel::<COUNT, ROWS, …>` with the rows of `$packed`, two at a time with few vectors: two share what is read of a
/// vector, and half as many additions wait for one another. With many vectors that is so anyway, and registers are short.
macro_rules! with_rows {
    ($count:expr, $rows:expr, $kernel:ident $(::<$rounding:ident>)?, $packed:expr, $($argument:expr),*) => {{
        let even = if $count <= 2 { $rows - $rows % TWO } else { 0 };
        match $count {
            1 => $kernel::<1, TWO $(, { $rounding })?>($packed, 0..even, $($argument),*),
            2 => $kernel::<2, TWO $(, { $rounding })?>($packed, 0..even, $($argument),*),
            _ => {}
        }
        with_count!($count, $kernel::<ONE $(, $rounding)?>, $packed, even..$rows, $($argument),*)
    }};
}

/// Runs of a row whose scales are unpacked at a time.
const AT_ONCE: usize = 32;

/// For each run of `$rows` rows of `$packed` from `$row` on, with `$runs` in a row: `$body`, with the row's number among
/// them, the run's place in its row, where its codes begin, and its scale. Scales are unpacked into memory first: from
/// there a multiplication spreads one over its lanes by itself.
macro_rules! each_run {
    ($packed:expr, $rows:expr, $row:expr, $runs:expr, |$number:ident, $at:ident, $codes:ident, $scale:ident| $body:block) => {
        for start in (0..$runs).step_by(AT_ONCE) {
            let here = AT_ONCE.min($runs - start);
            let mut scales = [[0.0f32; AT_ONCE]; $rows];
            for (number, scales) in scales.iter_mut().enumerate() {
                $packed.fill_scales(($row + number) * $runs + start, &mut scales[..here]);
            }
            for $at in start..start + here {
                for $number in 0..$rows {
                    let $scale = *scales[$number].get_unchecked($at - start);
                    let $codes = $packed.codes.as_ptr().add((($row + $number) * $runs + $at) * RUN / 2);
                    $body
                }
            }
        }
    };
}

/// Rows that a kernel takes together.
const ONE: usize = 1;
const TWO: usize = 2;

/// How many vectors there are, and rows for the sums of which there is room.
fn sizes<V>(vectors: &[V], width: usize, lanes: &[f32]) -> (usize, usize) {
    let count = vectors.len() / width.max(1);
    assert!((1..=MOST).contains(&count) && vectors.len() == count * width, "gemv: vectors of {width}");
    (count, lanes.len() / (count * LANES))
}

/// Rows of 4-bit codes times vectors in bf16, parted by 64. The set in use is AVX-512 with BF16.
pub(super) fn packed_pairs(packed: &Packed<'_>, vectors: &[bf16], width: usize, lanes: &mut [f32]) {
    let (count, rows) = sizes(vectors, width, lanes);
    packed.check(width / RUN, rows);
    // SAFETY: the set in use has these features; codes and scales were checked for `rows` rows of whole runs, vectors
    // and lanes for `count` vectors.
    unsafe { with_rows!(count, rows, pairs_of, packed, vectors, width, lanes) }
}

/// Rows of 4-bit codes times vectors in f32, parted by 32, levels rounded to `T`. The set in use has AVX-512.
pub(super) fn packed_wide<T: Scalar>(packed: &Packed<'_>, vectors: &[f32], width: usize, lanes: &mut [f32]) {
    let (count, rows) = sizes(vectors, width, lanes);
    packed.check(width / RUN, rows);
    // SAFETY: as above.
    unsafe {
        match (T::IS_F32, T::IS_BF16) {
            (true, _) => with_rows!(count, rows, wide_of::<EXACT>, packed, vectors, width, lanes),
            (_, true) => with_rows!(count, rows, wide_of::<TO_BF16>, packed, vectors, width, lanes),
            _ => with_rows!(count, rows, wide_of::<TO_F16>, packed, vectors, width, lanes),
        }
    }
}

/// [`packed_wide`] with AVX2.
pub(super) fn packed_half<T: Scalar>(packed: &Packed<'_>, vectors: &[f32], width: usize, lanes: &mut [f32]) {
    let (count, rows) = sizes(vectors, width, lanes);
    packed.check(width / RUN, rows);
    // SAFETY: as above.
    unsafe {
        match (T::IS_F32, T::IS_BF16) {
            (true, _) => with_rows!(count, rows, half_of::<EXACT>, packed, vectors, width, lanes),
            (_, true) => with_rows!(count, rows, half_of::<TO_BF16>, packed, vectors, width, lanes),
            _ => with_rows!(count, rows, half_of::<TO_F16>, packed, vectors, width, lanes),
        }
    }
}

/// Rows of bf16 times vectors of bf16. The set in use is AVX-512 with BF16.
pub(super) fn dense_pairs(
    values: &[bf16],
    vectors: &[bf16],
    width: usize,
    rows: Range<usize>,
    lanes: &mut [f32],
) {
    let values = &values[rows.start * width..rows.end * width];
    let (count, room) = sizes(vectors, width, lanes);
    assert_eq!(room, rows.len(), "gemv: room for the sums");
    // SAFETY: the set in use has these features; all slices are as long as `rows` and `count` ask for.
    unsafe { with_count!(count, dense_of, values, vectors, width, lanes) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pairs_of<const COUNT: usize, const ROWS: usize>(
    packed: &Packed<'_>,
    rows: Range<usize>,
    vectors: &[bf16],
    width: usize,
    lanes: &mut [f32],
) {
    let runs = width / RUN;
    // SAFETY: the caller checked the lengths.
    unsafe {
        let book = _mm512_loadu_ps(packed.codebook.as_ptr());
        for row in rows.step_by(ROWS) {
            let mut sums = [[[_mm512_setzero_ps(); 2]; COUNT]; ROWS];
            each_run!(packed, ROWS, row, runs, |number, at, codes, scale| {
                let levels = _mm512_mul_ps(book, _mm512_set1_ps(scale));
                // Twice the sixteen levels: the permutation looks at five bits of an index.
                let levels: __m512i = transmute(_mm512_cvtne2ps_pbh(levels, levels));
                ahead(codes);
                let bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(codes.cast()));
                let even = _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(bytes), levels);
                let odd = _mm512_permutexvar_epi16(bytes, levels);
                for (vector, sums) in sums[number].iter_mut().enumerate() {
                    let x = vectors.as_ptr().add(vector * width + at * RUN);
                    sums[0] = add_pairs(sums[0], even, _mm512_loadu_si512(x.cast()));
                    sums[1] = add_pairs(sums[1], odd, _mm512_loadu_si512(x.add(RUN / 2).cast()));
                }
            });
            let lanes = lanes.as_mut_ptr().add(row * COUNT * LANES);
            for (place, sums) in sums.as_flattened().iter().enumerate() {
                _mm512_storeu_ps(lanes.add(place * LANES), _mm512_add_ps(sums[0], sums[1]));
            }
        }
    }
}

/// Adds the products of pairs of bf16 to the lane of each pair.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_pairs(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: the types are of one size, and any bits are numbers.
    let pair = |lanes| unsafe { transmute::<__m512i, __m512bh>(lanes) };
    _mm512_dpbf16_ps(sums, pair(a), pair(b))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
unsafe fn wide_of<const COUNT: usize, const ROWS: usize, const ROUNDING: u8>(
    packed: &Packed<'_>,
    rows: Range<usize>,
    vectors: &[f32],
    width: usize,
    lanes: &mut [f32],
) {
    let runs = width / RUN;
    // SAFETY: the caller checked the lengths.
    unsafe {
        let book = _mm512_loadu_ps(packed.codebook.as_ptr());
        for row in rows.step_by(ROWS) {
            let mut sums = [[[_mm512_setzero_ps(); 2]; COUNT]; ROWS];
            each_run!(packed, ROWS, row, runs, |number, at, codes, scale| {
                let levels = rounded_wide::<ROUNDING>(_mm512_mul_ps(book, _mm512_set1_ps(scale)));
                ahead(codes);
                for half in 0..2 {
                    let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.add(half * RUN / 4).cast()));
                    let even = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), levels);
                    let odd = _mm512_permutexvar_ps(bytes, levels);
                    for (vector, sums) in sums[number].iter_mut().enumerate() {
                        let x = vectors.as_ptr().add(vector * width + at * RUN + half * RUN / 2);
                        sums[0] = _mm512_fmadd_ps(even, _mm512_loadu_ps(x), sums[0]);
                        sums[1] = _mm512_fmadd_ps(odd, _mm512_loadu_ps(x.add(LANES)), sums[1]);
                    }
                }
            });
            let lanes = lanes.as_mut_ptr().add(row * COUNT * LANES);
            for (place, sums) in sums.as_flattened().iter().enumerate() {
                _mm512_storeu_ps(lanes.add(place * LANES), _mm512_add_ps(sums[0], sums[1]));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn rounded_wide<const ROUNDING: u8>(levels: __m512) -> __m512 {
    match ROUNDING {
        TO_BF16 => {
            // To nearest, ties to even; levels are finite.
            let bits = _mm512_castps_si512(levels);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
        }
        TO_F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(levels)),
        _ => levels,
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_of<const COUNT: usize, const ROWS: usize, const ROUNDING: u8>(
    packed: &Packed<'_>,
    rows: Range<usize>,
    vectors: &[f32],
    width: usize,
    lanes: &mut [f32],
) {
    let runs = width / RUN;
    // SAFETY: the caller checked the lengths.
    unsafe {
        let low = _mm256_loadu_ps(packed.codebook.as_ptr());
        let high = _mm256_loadu_ps(packed.codebook.as_ptr().add(8));
        for row in rows.step_by(ROWS) {
            let mut sums = [[[_mm256_setzero_ps(); 2]; COUNT]; ROWS];
            each_run!(packed, ROWS, row, runs, |number, at, codes, scale| {
                let scale = _mm256_set1_ps(scale);
                let low = rounded_half::<ROUNDING>(_mm256_mul_ps(low, scale));
                let high = rounded_half::<ROUNDING>(_mm256_mul_ps(high, scale));
                ahead(codes);
                for quarter in 0..4 {
                    let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.add(quarter * 8).cast()));
                    let even = looked_up(_mm256_srli_epi32::<4>(bytes), low, high);
                    let odd = looked_up(bytes, low, high);
                    let place = at * RUN + quarter / 2 * RUN / 2 + quarter % 2 * 8;
                    for (vector, sums) in sums[number].iter_mut().enumerate() {
                        let x = vectors.as_ptr().add(vector * width + place);
                        sums[0] = _mm256_fmadd_ps(even, _mm256_loadu_ps(x), sums[0]);
                        sums[1] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(x.add(LANES)), sums[1]);
                    }
                }
            });
            let lanes = lanes.as_mut_ptr().add(row * COUNT * LANES);
            for (place, sums) in sums.as_flattened().iter().enumerate() {
                _mm256_storeu_ps(lanes.add(place * LANES), sums[0]);
                _mm256_storeu_ps(lanes.add(place * LANES + LANES / 2), sums[1]);
            }
        }
    }
}

/// One of sixteen levels for each lane, by the low four bits of its index.
#[inline]
#[target_feature(enable = "avx2")]
fn looked_up(index: __m256i, low: __m256, high: __m256) -> __m256 {
    // A permutation reads three bits; the fourth, moved to where a blend looks, chooses between two.
    let fourth = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
    let (low, high) = (_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index));
    _mm256_blendv_ps(low, high, fourth)
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn rounded_half<const ROUNDING: u8>(levels: __m256) -> __m256 {
    match ROUNDING {
        TO_BF16 => {
            let bits = _mm256_castps_si256(levels);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
        }
        TO_F16 => _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(levels)),
        _ => levels,
    }
}

/// The running sums added up, as [`super::join`]. The set in use is AVX-512 with BF16.
pub(super) fn join(lanes: &[f32], count: usize, sums: &mut [f32]) {
    assert_eq!(lanes.len(), sums.len() * LANES, "gemv: running sums");
    // SAFETY: the set in use has these features; lengths were checked.
    unsafe { join_of(lanes, count.max(1), sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn join_of(lanes: &[f32], count: usize, sums: &mut [f32]) {
    let rows = sums.len() / count;
    for (vector, sums) in sums.chunks_exact_mut(rows.max(1)).enumerate() {
        for (block, sums) in sums.chunks_mut(LANES).enumerate() {
            let last = sums.len() - 1;
            // Rows that are not there are the last one once more; their sums are not kept.
            let all = std::array::from_fn(|number| {
                let place = ((block * LANES + number.min(last)) * count + vector) * LANES;
                // SAFETY: there are `rows · count` groups of lanes.
                unsafe { _mm512_loadu_ps(lanes.as_ptr().add(place)) }
            });
            let mask = (!0u16) >> (LANES - sums.len());
            // SAFETY: the mask keeps to the sums.
            unsafe { _mm512_mask_storeu_ps(sums.as_mut_ptr(), mask, add_across(all)) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn dense_of<const COUNT: usize>(values: &[bf16], vectors: &[bf16], width: usize, lanes: &mut [f32]) {
    // SAFETY: the caller checked the lengths; the last load of a row is masked to what is left of it.
    unsafe {
        let mut row = values.as_ptr();
        for lanes in lanes.chunks_exact_mut(COUNT * LANES) {
            let mut sums = [[_mm512_setzero_ps(); 2]; COUNT];
            let mut start = 0;
            while start + 64 <= width {
                ahead(row.add(start));
                ahead(row.add(start + 32));
                let first = _mm512_loadu_si512(row.add(start).cast());
                let second = _mm512_loadu_si512(row.add(start + 32).cast());
                for (vector, sums) in sums.iter_mut().enumerate() {
                    let x = vectors.as_ptr().add(vector * width + start);
                    let (x_first, x_second) =
                        (_mm512_loadu_si512(x.cast()), _mm512_loadu_si512(x.add(32).cast()));
                    sums[0] = add_pairs(sums[0], first, x_first);
                    sums[1] = add_pairs(sums[1], second, x_second);
                }
                start += 64;
            }
            while start < width {
                let left = width - start;
                let mask: __mmask32 = if left >= 32 { !0 } else { (1 << left) - 1 };
                let weights = _mm512_maskz_loadu_epi16(mask, row.add(start).cast());
                for (vector, sums) in sums.iter_mut().enumerate() {
                    let x = vectors.as_ptr().add(vector * width + start);
                    let x = _mm512_maskz_loadu_epi16(mask, x.cast());
                    sums[0] = add_pairs(sums[0], weights, x);
                }
                start += 32;
            }
            for (sums, lanes) in sums.iter().zip(lanes.chunks_exact_mut(LANES)) {
                _mm512_storeu_ps(lanes.as_mut_ptr(), _mm512_add_ps(sums[0], sums[1]));
            }
            row = row.add(width);
        }
    }
}
