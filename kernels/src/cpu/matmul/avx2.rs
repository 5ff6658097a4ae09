//! AVX2 with FMA, 6 × 16: twelve accumulators, two vectors of columns and one broadcast of the sixteen registers.
#![expect(clippy::needless_range_loop, reason = "indices name registers: the loops unroll")]

use std::arch::x86_64::*;

use super::kernel::{Element, Kernel, Run, with_rows};

pub(super) static KERNEL: Kernel = Kernel { rows: 6, columns: 16, element: Element::F32, multiply };

#[target_feature(enable = "avx2,fma")]
unsafe fn multiply(rows: usize, runs: &[Run], accumulators: *mut f32, load: bool) {
    // SAFETY: handed on to the caller.
    unsafe { with_rows!(rows, [1 2 3 4 5 6], tile, 2, runs, accumulators, load) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const M: usize, const V: usize>(runs: &[Run], accumulators: *mut f32, load: bool) {
    // SAFETY: the caller answers for the lengths of operands and accumulators.
    unsafe {
        let mut c = [[_mm256_setzero_ps(); V]; M];
        if load {
            for i in 0..M {
                for v in 0..V {
                    c[i][v] = _mm256_load_ps(accumulators.add((V * i + v) * 8));
                }
            }
        }
        for run in runs {
            let (mut a, mut b) = (run.rows.cast::<f32>(), run.columns.cast::<f32>());
            for _ in 0..run.steps {
                let columns: [__m256; V] = std::array::from_fn(|v| _mm256_load_ps(b.add(8 * v)));
                for i in 0..M {
                    let row = _mm256_broadcast_ss(&*a.add(i));
                    for v in 0..V {
                        c[i][v] = _mm256_fmadd_ps(row, columns[v], c[i][v]);
                    }
                }
                a = a.add(M);
                b = b.add(8 * V);
            }
        }
        for i in 0..M {
            for v in 0..V {
                _mm256_store_ps(accumulators.add((V * i + v) * 8), c[i][v]);
            }
        }
    }
}
