//! The microkernels: one register tile of `C += A · B` from packed operands, for each instruction set.
//!
//! A packed operand is a sequence of *steps*. Where the machine multiplies bf16, a step is two neighbouring indices
//! of the reduction, as a pair of bf16 in 32 bits; elsewhere it is one index in f32. Either way an element is 32
//! bits. The left operand holds, step by step, one element for each row of the tile; the right one, one for each
//! column.

use super::super::isa::InstructionSet;
use super::super::scalar::Scalar;

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

/// The kernels for one compute dtype on one instruction set. They differ in their columns alone.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) wide: &'static Kernel,
    /// For outputs of a few columns, such as a rank.
    pub(crate) narrow: &'static Kernel,
}

impl Kernels {
    /// The kernels for operands rounded to `T`, on the set in use.
    pub(crate) fn of<T: Scalar>() -> Self {
        match InstructionSet::current() {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Bf16 if T::IS_BF16 => {
                Self { wide: &super::avx512_bf16::WIDE, narrow: &super::avx512_bf16::NARROW }
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 | InstructionSet::Avx512Bf16 => {
                Self { wide: &super::avx512::WIDE, narrow: &super::avx512::NARROW }
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Self { wide: &super::avx2::KERNEL, narrow: &super::avx2::KERNEL },
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => Self { wide: &super::neon::KERNEL, narrow: &super::neon::KERNEL },
            _ => Self { wide: &super::portable::KERNEL, narrow: &super::portable::KERNEL },
        }
    }

    /// The kernel for an output of so many columns.
    pub(crate) fn for_columns(self, columns: usize) -> &'static Kernel {
        if columns <= self.narrow.columns { self.narrow } else { self.wide }
    }

    /// What their operands hold.
    pub(crate) fn element(self) -> Element {
        self.wide.element
    }
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
