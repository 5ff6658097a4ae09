//! NEON, 6 × 16: 24 accumulators, four vectors of columns and one broadcast of the 32 registers.
#![expect(clippy::needless_range_loop, reason = "indices name registers: the loops unroll")]

use std::arch::aarch64::*;

use super::kernel::{Element, Kernel, Run, with_rows};

pub(super) static KERNEL: Kernel = Kernel { rows: 6, columns: 16, element: Element::F32, multiply };

#[target_feature(enable = "neon")]
unsafe fn multiply(rows: usize, runs: &[Run], accumulators: *mut f32, load: bool) {
    // SAFETY: handed on to the caller.
    unsafe { with_rows!(rows, [1 2 3 4 5 6], tile, 4, runs, accumulators, load) }
}

#[target_feature(enable = "neon")]
unsafe fn tile<const M: usize, const V: usize>(runs: &[Run], accumulators: *mut f32, load: bool) {
    // SAFETY: the caller answers for the lengths of operands and accumulators.
    unsafe {
        let mut c = [[vdupq_n_f32(0.0); V]; M];
        if load {
            for i in 0..M {
                for v in 0..V {
                    c[i][v] = vld1q_f32(accumulators.add((V * i + v) * 4));
                }
            }
        }
        for run in runs {
            let (mut a, mut b) = (run.rows.cast::<f32>(), run.columns.cast::<f32>());
            for _ in 0..run.steps {
                let columns: [float32x4_t; V] = std::array::from_fn(|v| vld1q_f32(b.add(4 * v)));
                for i in 0..M {
                    let row = *a.add(i);
                    for v in 0..V {
                        c[i][v] = vfmaq_n_f32(c[i][v], columns[v], row);
                    }
                }
                a = a.add(M);
                b = b.add(4 * V);
            }
        }
        for i in 0..M {
            for v in 0..V {
                vst1q_f32(accumulators.add((V * i + v) * 4), c[i][v]);
            }
        }
    }
}
