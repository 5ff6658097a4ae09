//! What the CPU paths of all ops share: fork-join policy, instruction-set dispatch, scratch memory, the blocked
//! product, and the way in and out of burn-flex tensors. Knows no op.
//!
//! Two rules make results independent of the number of threads: work is cut into tasks whose sizes follow from the
//! shapes alone, and no two tasks add into the same number.

pub(crate) mod disjoint;
pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod parallel;
pub(crate) mod product;
pub(crate) mod scalar;
pub(crate) mod scratch;
pub(crate) mod simd;
pub(crate) mod tensor;

pub(crate) use simd::vectorized;
