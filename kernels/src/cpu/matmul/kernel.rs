//! The microkernels: one register tile of `C += A · B` from packed operands. Each instruction set
//! has a file of its own, and `select` chooses.
//!
//! A packed operand is a sequence of *steps*. Where the machine multiplies bf16, a step is two neighbouring indices
//! of the reduction, as a pair of bf16 in 32 bits; elsewhere it is one index in f32. Either way an element is 32
//! bits. The left operand holds, step by step, one element for each row of the tile; the right one, one for each
//! column.

/// What one packed element holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// Two neighbouring indices of the reduction in bf16, the first in the low half.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "bf16 units of x86-64"))]
    Bf16Pair,
    /// One index in f32.
    F32,
}

impl Element {
    /// Indices of the reduction in one element.
    pub(crate) fn indices(self) -> usize {
        match self {
            Self::Bf16Pair => 2,
            Self::F32 => 1,
        }
    }
}

/// A stretch of the reduction: packed rows against packed columns.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) steps: usize,
    pub(crate) rows: *const u32,
    pub(crate) columns: *const u32,
}

/// Accumulates `runs` into the tile `accumulators` `[rows, columns of the kernel]`: onto what is there if `load`,
/// else onto zero.
///
/// # Safety
/// The instruction set of the kernel is there; `rows` is from 1 to the kernel's; every run's operands hold
/// `steps · rows` and `steps · columns` elements, the columns and the accumulators at multiples of 64 bytes.
type Multiply = unsafe fn(rows: usize, runs: &[Run], accumulators: *mut f32, load: bool);

/// One microkernel.
pub(crate) struct Kernel {
    /// Most rows of a tile.
    pub(crate) rows: usize,
    /// Columns of a tile.
    pub(crate) columns: usize,
    pub(crate) element: Element,
    pub(crate) multiply: Multiply,
}

/// Calls `$kernel::<ROWS, $vectors>` with the run-time number of rows, one of those listed.
macro_rules! with_rows {
    ($rows:expr, [$($n:literal)*], $kernel:ident, $vectors:expr, $runs:expr, $accumulators:expr, $load:expr) => {
        match $rows {
            $($n => $kernel::<$n, { $vectors }>($runs, $accumulators, $load),)*
            _ => unreachable!("a tile of {} rows", $rows),
        }
    };
}
pub(super) use with_rows;
