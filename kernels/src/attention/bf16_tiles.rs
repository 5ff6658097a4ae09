//! Register tiles of attention with AVX-512 and BF16: up to 14 queries against 32 keys.
//!
//! A left operand is read where it lies. Rows of queries are pairs of neighbouring indices as they are; probabilities
//! and slopes leave the registers as such pairs too, along the keys (`[query][pair of keys]`) for the products whose
//! reduction they are, along the queries (`[pair of queries][key]`) for those of the keys' gradients. Both are
//! broadcast from there at strides that are known here, so nothing is repacked between the products.

#![expect(clippy::needless_range_loop, reason = "indices name registers: the loops unroll")]

use std::arch::x86_64::*;
use std::mem::transmute;

use half::bf16;

use crate::cpu::fast::{Lanes, exp2};

/// Queries of a tile; tiles have an even number of rows, the last of which may be zeros.
pub(super) const ROWS: usize = 14;
/// Keys of a tile.
pub(super) const PANEL: usize = 32;
/// Keys that the forward holds scores of.
pub(super) const KEYS: usize = 256;
/// Keys that the backward holds slopes of.
pub(super) const SLOPED: usize = 128;
/// Widest head.
pub(super) const MOST_DIM: usize = 256;
/// Elements from one row of queries to the next. Like the strides below no power of two, which would fight over cache sets.
pub(super) const QUERY: usize = MOST_DIM / 2 + 16;
/// Scores from one query to the next.
pub(super) const SCORE: usize = KEYS + 16;
/// Pairs of probabilities from one query to the next.
pub(super) const WEIGHT: usize = KEYS / 2 + 16;
/// Pairs of slopes from one query to the next.
pub(super) const SLOPE: usize = SLOPED / 2 + 16;
/// Keys from one pair of queries to the next, with room for a vector of zeros.
pub(super) const ACROSS: usize = SLOPED + 16;

/// A right operand: one panel of columns, its steps `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub(super) columns: *const u32,
    pub(super) stride: usize,
    pub(super) steps: usize,
}

/// Calls `$kernel::<ROWS, VECTORS>` of run-time numbers: an even number of rows, one vector or two.
macro_rules! with_size {
    ($rows:expr, $vectors:expr, $kernel:ident $(, $more:expr)*; $($argument:expr),*) => {
        match ($rows, $vectors) {
            (2, 1) => $kernel::<2, 1 $(, {$more})*>($($argument),*),
            (4, 1) => $kernel::<4, 1 $(, {$more})*>($($argument),*),
            (6, 1) => $kernel::<6, 1 $(, {$more})*>($($argument),*),
            (8, 1) => $kernel::<8, 1 $(, {$more})*>($($argument),*),
            (10, 1) => $kernel::<10, 1 $(, {$more})*>($($argument),*),
            (12, 1) => $kernel::<12, 1 $(, {$more})*>($($argument),*),
            (14, 1) => $kernel::<14, 1 $(, {$more})*>($($argument),*),
            (2, 2) => $kernel::<2, 2 $(, {$more})*>($($argument),*),
            (4, 2) => $kernel::<4, 2 $(, {$more})*>($($argument),*),
            (6, 2) => $kernel::<6, 2 $(, {$more})*>($($argument),*),
            (8, 2) => $kernel::<8, 2 $(, {$more})*>($($argument),*),
            (10, 2) => $kernel::<10, 2 $(, {$more})*>($($argument),*),
            (12, 2) => $kernel::<12, 2 $(, {$more})*>($($argument),*),
            (14, 2) => $kernel::<14, 2 $(, {$more})*>($($argument),*),
            (rows, vectors) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
        }
    };
}

/// `c += rows · panel`: `c` is a local array, so that it stays in registers.
macro_rules! accumulate {
    ($c:ident, $rows:expr, $row_stride:expr, $step_stride:expr, $panel:expr, $m:ident, $v:ident) => {
        let (mut a, mut b): (*const u32, *const u32) = ($rows, $panel.columns);
        for _ in 0..$panel.steps {
            let columns: [__m512bh; $v] =
                std::array::from_fn(|v| transmute(_mm512_loadu_si512(b.add(16 * v).cast())));
            for i in 0..$m {
                let row: __m512bh = transmute(_mm512_set1_epi32(*a.add(i * $row_stride) as i32));
                for v in 0..$v {
                    $c[i][v] = _mm512_dpbf16_ps($c[i][v], row, columns[v]);
                }
            }
            a = a.wrapping_add($step_stride);
            b = b.wrapping_add($panel.stride);
        }
    };
}

/// Writes the scores of `rows` queries ([`QUERY`] apart) against `16 · vectors` keys to `out` ([`SCORE`] apart).
///
/// # Safety
/// AVX-512 with BF16 is there; `rows` is even and at most [`ROWS`], `vectors` 1 or 2; the queries and the panel hold
/// its steps, and `out` takes the tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn scores(rows: usize, vectors: usize, queries: *const u32, panel: Panel, out: *mut f32) {
    // SAFETY: handed on to the caller.
    unsafe { with_size!(rows, vectors, scores_tile; queries, panel, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn scores_tile<const M: usize, const V: usize>(queries: *const u32, panel: Panel, out: *mut f32) {
    // SAFETY: the caller answers for the operands.
    unsafe {
        let mut c = [[_mm512_setzero_ps(); V]; M];
        accumulate!(c, queries, QUERY, 1, panel, M, V);
        for (i, c) in c.iter().enumerate() {
            for (v, c) in c.iter().enumerate() {
                _mm512_storeu_ps(out.add(i * SCORE + 16 * v), *c);
            }
        }
    }
}

/// Adds `weights · panel` to `rows` rows of `out`, `stride` apart, of `16 · vectors` columns; onto zero unless `load`.
/// Weights lie as [`weights`] leaves them (`AS_WEIGHTS`), or as [`slopes`] along the keys (`ALONG_KEYS`) or the queries
/// (`ALONG_QUERIES`).
///
/// # Safety
/// As [`scores`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn gather<const FROM: u8>(
    rows: usize,
    vectors: usize,
    weights: *const u32,
    panel: Panel,
    out: *mut f32,
    stride: usize,
    load: bool,
) {
    // SAFETY: handed on to the caller.
    unsafe { with_size!(rows, vectors, gather_tile, FROM; weights, panel, out, stride, load) }
}

pub(super) const AS_WEIGHTS: u8 = 0;
pub(super) const ALONG_KEYS: u8 = 1;
pub(super) const ALONG_QUERIES: u8 = 2;

const fn row_stride(from: u8) -> usize {
    match from {
        AS_WEIGHTS => WEIGHT,
        ALONG_KEYS => SLOPE,
        _ => 1,
    }
}

const fn step_stride(from: u8) -> usize {
    match from {
        ALONG_QUERIES => ACROSS,
        _ => 1,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn gather_tile<const M: usize, const V: usize, const FROM: u8>(
    weights: *const u32,
    panel: Panel,
    out: *mut f32,
    stride: usize,
    load: bool,
) {
    // SAFETY: the caller answers for the operands.
    unsafe {
        let mut c = [[_mm512_setzero_ps(); V]; M];
        if load {
            for (i, c) in c.iter_mut().enumerate() {
                for (v, c) in c.iter_mut().enumerate() {
                    *c = _mm512_loadu_ps(out.add(i * stride + 16 * v));
                }
            }
        }
        accumulate!(c, weights, const { row_stride(FROM) }, const { step_stride(FROM) }, panel, M, V);
        for (i, c) in c.iter().enumerate() {
            for (v, c) in c.iter().enumerate() {
                _mm512_storeu_ps(out.add(i * stride + 16 * v), *c);
            }
        }
    }
}

/// Rounds `values · factor` into `out`, which is as long: a multiple of 16.
///
/// # Safety
/// AVX-512 with BF16 is there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn round(values: &[f32], factor: f32, out: &mut [bf16]) {
    assert_eq!(values.len(), out.len());
    let factor = _mm512_set1_ps(factor);
    for (values, out) in values.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
        // SAFETY: sixteen values each.
        unsafe {
            let scaled = _mm512_mul_ps(_mm512_loadu_ps(values.as_ptr()), factor);
            bf16::store(out.as_mut_ptr(), !0, scaled);
        }
    }
}

/// Σ a · b of two rows of one length.
///
/// # Safety
/// AVX-512 with BF16 is there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn dot(a: &[bf16], b: &[bf16]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut sum = _mm512_setzero_ps();
    for start in (0..a.len()).step_by(32) {
        let live = if a.len() - start >= 32 { u32::MAX } else { (1 << (a.len() - start)) - 1 };
        // SAFETY: the mask keeps to the rows; the types are of one size.
        unsafe {
            let a: __m512bh = transmute(_mm512_maskz_loadu_epi16(live, a.as_ptr().add(start).cast()));
            let b: __m512bh = transmute(_mm512_maskz_loadu_epi16(live, b.as_ptr().add(start).cast()));
            sum = _mm512_dpbf16_ps(sum, a, b);
        }
    }
    _mm512_reduce_add_ps(sum)
}

/// Of lanes `start..start + 16` those in `from..to`.
#[inline]
fn lanes(from: usize, to: usize, start: usize) -> __mmask16 {
    let below = |end: usize| (1u32 << end.saturating_sub(start).min(16)) - 1;
    (below(to) & !below(from)) as __mmask16
}

/// Turns the scores `from..to` of one query into `2^(factor · score − most)` with the largest of these and `most`, rounded, in
/// pairs; those before and after, up to `width` (a multiple of 16), into 0. Returns that largest, and the sum.
///
/// # Safety
/// AVX-512 with BF16 is there; `scores` holds `width` numbers and `out` takes as many, and both a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn weights(
    scores: *const f32,
    (from, to): (usize, usize),
    width: usize,
    factor: f32,
    most: f32,
    out: *mut u32,
) -> (f32, f32) {
    // SAFETY: the caller answers for the lengths; lanes beyond `to` are not read.
    unsafe {
        let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
        for start in (from / 16 * 16..to).step_by(16) {
            let mask = lanes(from, to, start);
            let score = _mm512_maskz_loadu_ps(mask, scores.add(start));
            largest = _mm512_mask_max_ps(largest, mask, largest, score);
        }
        let found = _mm512_reduce_max_ps(largest) * factor;
        let most = if found > most { found } else { most };
        let (scale, shift) = (_mm512_set1_ps(factor), _mm512_set1_ps(most));
        let mut sums = [_mm512_setzero_ps(); 2];
        for start in (0..width).step_by(PANEL) {
            let mut values = [_mm512_setzero_ps(); 2];
            for v in 0..2 {
                let mask = lanes(from, to, start + 16 * v);
                let score = _mm512_maskz_loadu_ps(mask, scores.add(start + 16 * v));
                values[v] = _mm512_maskz_mov_ps(mask, exp2(_mm512_fmsub_ps(score, scale, shift)));
                sums[v] = _mm512_add_ps(sums[v], values[v]);
            }
            let pairs: __m512i = transmute(_mm512_cvtne2ps_pbh(values[1], values[0]));
            _mm512_storeu_si512(out.add(start / 2).cast(), pairs);
        }
        (most, _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])))
    }
}

/// Both operands of a tile of the backward, and where its results go.
pub(super) struct Slopes {
    /// Queries and upstream gradients, [`QUERY`] apart.
    pub(super) queries: *const u32,
    pub(super) upstream: *const u32,
    /// The same keys and values, as columns.
    pub(super) keys: Panel,
    pub(super) values: Panel,
    /// scaling · log₂ e, and of each query log₂ Σ exp and δ.
    pub(super) factor: f32,
    pub(super) shifts: *const f32,
    pub(super) deltas: *const f32,
    /// For each query the keys that it sees.
    pub(super) visible: [u32; ROWS],
    /// Probabilities in pairs of queries, [`ACROSS`] apart.
    pub(super) weights: *mut u32,
    /// Slopes in pairs of queries, [`ACROSS`] apart, and in pairs of keys, [`SLOPE`] apart.
    pub(super) across: *mut u32,
    pub(super) along: *mut u32,
}

/// Computes p = 2^(factor · score − shift) and ds = p (dp − δ) of a tile; both are 0 where not visible.
///
/// # Safety
/// As [`scores`]; the outputs take the tile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn slopes(rows: usize, vectors: usize, tile: &Slopes) {
    // SAFETY: handed on to the caller.
    unsafe { with_size!(rows, vectors, slopes_tile; tile) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn slopes_tile<const M: usize, const V: usize>(tile: &Slopes) {
    // SAFETY: the caller answers for the operands.
    unsafe {
        let neighbours = interleave();
        let mut held = [[_mm512_setzero_ps(); V]; M];
        {
            let mut c = [[_mm512_setzero_ps(); V]; M];
            accumulate!(c, tile.queries, QUERY, 1, tile.keys, M, V);
            let factor = _mm512_set1_ps(tile.factor);
            for i in 0..M {
                let shift = _mm512_set1_ps(*tile.shifts.add(i));
                for v in 0..V {
                    let mask = (tile.visible[i] >> (16 * v)) as __mmask16;
                    let p = exp2(_mm512_fmsub_ps(c[i][v], factor, shift));
                    held[i][v] = _mm512_maskz_mov_ps(mask, p);
                }
            }
        }
        for i in (0..M).step_by(2) {
            for v in 0..V {
                let pairs: __m512i = transmute(_mm512_cvtne2ps_pbh(held[i + 1][v], held[i][v]));
                let out = tile.weights.add(i / 2 * ACROSS + 16 * v);
                _mm512_storeu_si512(out.cast(), _mm512_permutexvar_epi16(neighbours, pairs));
            }
        }
        let mut c = [[_mm512_setzero_ps(); V]; M];
        accumulate!(c, tile.upstream, QUERY, 1, tile.values, M, V);
        for i in 0..M {
            let delta = _mm512_set1_ps(*tile.deltas.add(i));
            for v in 0..V {
                c[i][v] = _mm512_mul_ps(_mm512_sub_ps(c[i][v], delta), held[i][v]);
            }
            let out = tile.along.add(i * SLOPE);
            if V == 2 {
                let pairs: __m512i = transmute(_mm512_cvtne2ps_pbh(c[i][V - 1], c[i][0]));
                _mm512_storeu_si512(out.cast(), pairs);
            } else {
                let pairs: __m256i = transmute(_mm512_cvtneps_pbh(c[i][0]));
                _mm256_storeu_si256(out.cast(), pairs);
            }
        }
        for i in (0..M).step_by(2) {
            for v in 0..V {
                let pairs: __m512i = transmute(_mm512_cvtne2ps_pbh(c[i + 1][v], c[i][v]));
                let out = tile.across.add(i / 2 * ACROSS + 16 * v);
                _mm512_storeu_si512(out.cast(), _mm512_permutexvar_epi16(neighbours, pairs));
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
