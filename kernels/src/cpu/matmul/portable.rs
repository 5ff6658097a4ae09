//! Plain Rust, 4 × 8: small enough for the sixteen 128-bit registers that any x86-64 has.

use super::kernel::{Element, Kernel, Run, with_rows};

const COLUMNS: usize = 8;

pub(super) static KERNEL: Kernel = Kernel { rows: 4, columns: COLUMNS, element: Element::F32, multiply };

unsafe fn multiply(rows: usize, runs: &[Run], accumulators: *mut f32, load: bool) {
    // SAFETY: handed on to the caller.
    unsafe { with_rows!(rows, [1 2 3 4], tile, COLUMNS, runs, accumulators, load) }
}

unsafe fn tile<const M: usize, const N: usize>(runs: &[Run], accumulators: *mut f32, load: bool) {
    // SAFETY: the caller answers for the length of the accumulators, and is their only writer.
    let accumulators = unsafe { std::slice::from_raw_parts_mut(accumulators.cast::<[f32; N]>(), M) };
    let mut c = [[0.0f32; N]; M];
    if load {
        c.copy_from_slice(accumulators);
    }
    for run in runs {
        // SAFETY: the caller answers for the lengths of the operands.
        let (rows, columns) = unsafe {
            (
                std::slice::from_raw_parts(run.rows.cast::<[f32; M]>(), run.steps),
                std::slice::from_raw_parts(run.columns.cast::<[f32; N]>(), run.steps),
            )
        };
        for (rows, columns) in rows.iter().zip(columns) {
            for (c, row) in c.iter_mut().zip(rows) {
                for (c, column) in c.iter_mut().zip(columns) {
                    *c += row * column;
                }
            }
        }
    }
    accumulators.copy_from_slice(&c);
}
