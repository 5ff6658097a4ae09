//! The most that the machine can multiply: the ceiling that products are measured against.
//!
//! On the processor the microkernel alone, on operands that never leave the first-level cache: nothing is packed,
//! unpacked or stored meanwhile. On a GPU the plain product of dense square matrices, as large as it needs to be at its
//! best.

use std::time::{Duration, Instant};

use burn_tensor::{DType, Distribution, Tensor};

use crate::KernelBackend;
use crate::cpu::matmul;
use crate::cpu::parallel;
use crate::cpu::scalar::with_float;
use crate::linear::{FrozenWeight, Linear, linear};

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

/// The side of the largest matrices that a device's ceiling is measured with.
const LARGEST: usize = 8192;

/// Floating-point operations per second of [`linear`] over a dense square weight in `dtype` on a GPU: of the size that
/// runs fastest, among those that `time` is enough for. `None` when the device fails.
pub fn device_matmul_flops<B: KernelBackend>(
    device: &B::Device,
    dtype: DType,
    time: Duration,
) -> Option<f64> {
    let mut best = None;
    let mut side = 512;
    while side <= LARGEST {
        let random = || Tensor::<B, 2>::random([side, side], Distribution::Default, (device, dtype));
        let (x, weight) = (random(), FrozenWeight::Dense(random()));
        let product = || drop(linear(&x, &[Linear { weight: &weight, bias: None, lora: None }], None));
        // Compiles the kernels, and chooses among them.
        product();
        B::sync(device).ok()?;
        let mut products = 1_u32;
        let round = loop {
            let began = Instant::now();
            (0..products).for_each(|_| product());
            B::sync(device).ok()?;
            let took = began.elapsed();
            // Long enough for the clock, and for launches not to count.
            if took * 4 >= time {
                break took;
            }
            products *= 2;
        };
        let flops = f64::from(products) * 2.0 * (side as f64).powi(3) / round.as_secs_f64();
        best = Some(best.map_or(flops, |best: f64| best.max(flops)));
        // The next one takes eight times as long.
        if round > 2 * time && products == 1 {
            break;
        }
        side *= 2;
    }
    best
}
