//! AVX-512 with BF16: `vdpbf16ps`, two multiply-adds per lane.
//!
//! 14 × 32: 28 accumulators, two vectors of columns and one broadcast are 31 of the 32 registers.
#![expect(clippy::needless_range_loop, reason = "indices name registers: the loops unroll")]

use std::arch::x86_64::*;
use std::mem::transmute;

use super::kernel::{Element, Kernel, Run, with_rows};

const ROWS: usize = 14;
/// How far ahead, in elements, packed rows are fetched into the second-level cache: they are the one operand that
/// streams from beyond it.
const AHEAD: usize = 2048;

pub(super) static WIDE: Kernel =
    Kernel { rows: ROWS, columns: 32, element: Element::Bf16Pair, multiply: multiply::<2> };
pub(super) static NARROW: Kernel =
    Kernel { rows: ROWS, columns: 16, element: Element::Bf16Pair, multiply: multiply::<1> };

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn multiply<const VECTORS: usize>(rows: usize, runs: &[Run], accumulators: *mut f32, load: bool) {
    // SAFETY: handed on to the caller.
    unsafe { with_rows!(rows, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], tile, VECTORS, runs, accumulators, load) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const M: usize, const V: usize>(runs: &[Run], accumulators: *mut f32, load: bool) {
    // SAFETY: the caller answers for the lengths of operands and accumulators.
    unsafe {
        let mut c = [[_mm512_setzero_ps(); V]; M];
        if load {
            for i in 0..M {
                for v in 0..V {
                    c[i][v] = _mm512_load_ps(accumulators.add((i * V + v) * 16));
                }
            }
        }
        for run in runs {
            let (mut a, mut b) = (run.rows, run.columns);
            for _ in 0..run.steps {
                let columns: [__m512bh; V] =
                    std::array::from_fn(|v| transmute(_mm512_load_si512(b.add(16 * v).cast())));
                for i in 0..M {
                    let row: __m512bh = transmute(_mm512_set1_epi32(*a.add(i) as i32));
                    for v in 0..V {
                        c[i][v] = _mm512_dpbf16_ps(c[i][v], row, columns[v]);
                    }
                }
                _mm_prefetch::<_MM_HINT_T1>(a.wrapping_add(AHEAD).cast());
                a = a.add(M);
                b = b.add(16 * V);
            }
        }
        for i in 0..M {
            for v in 0..V {
                _mm512_store_ps(accumulators.add((i * V + v) * 16), c[i][v]);
            }
        }
    }
}
