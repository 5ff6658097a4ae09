//! Which microkernels a product runs on: by compute dtype and instruction set.

use super::super::isa::InstructionSet;
use super::super::scalar::Scalar;
use super::kernel::{Element, Kernel};

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
