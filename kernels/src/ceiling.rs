//! What the machine can multiply at most: the microkernel alone, on operands that never leave the first-level cache.
//!
//! The roof that products are measured against. Nothing is packed, unpacked or stored meanwhile.

use std::time::{Duration, Instant};

use burn::tensor::DType;

use crate::cpu::matmul;
use crate::cpu::parallel;
use crate::cpu::scalar::with_float;

/// Floating-point operations per second (a multiply-add is two) of the microkernel for `dtype`, on all threads
/// together, on the instruction set in use. The best of several runs within `time`.
///
/// # Panics
/// If the dtype is none of f32, bf16, f16.
pub fn matmul_flops(dtype: DType, time: Duration) -> f64 {
    let threads = parallel::threads();
    let begin = Instant::now();
    let mut best = 0.0f64;
    while begin.elapsed() < time {
        let round = Instant::now();
        // Each task is far longer than a fork, and all are of one length.
        let flops = with_float!(dtype, T => {
            let operations = std::sync::atomic::AtomicU64::new(0);
            parallel::for_each(vec![(); threads], usize::MAX, |()| {
                let done = matmul::spin::<T>(4000);
                operations.fetch_add(done, std::sync::atomic::Ordering::Relaxed);
            });
            operations.into_inner() as f64
        });
        best = best.max(flops / round.elapsed().as_secs_f64());
    }
    best
}
