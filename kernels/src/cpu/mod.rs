//! What the CPU paths of all ops share: instruction sets, fork-join policy, pooled memory, the blocked product, and
//! the way in and out of burn-flex tensors. Knows no op.
//!
//! Two rules make results independent of the number of threads: how a number is computed follows from the shapes
//! alone, and no two tasks add into the same number.

mod device;
pub(crate) mod disjoint;
#[cfg(target_arch = "x86_64")]
pub(crate) mod fast;
pub(crate) mod gemv;
pub mod isa;
pub(crate) mod math;
pub(crate) mod matmul;
pub(crate) mod parallel;
pub mod pool;
pub(crate) mod scalar;
mod team;
pub(crate) mod tensor;
mod weights;

pub(crate) use isa::vectorized;
