//! Random inputs, tensors from and to f32, and the comparison all parity tests share.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use tune_kernels::isa::InstructionSet;

/// Where a check runs, and with what.
#[derive(Debug)]
pub(crate) struct Site {
    /// The backend, and what of it.
    pub(crate) name: String,
    /// The compute dtypes it has.
    pub(crate) dtypes: Vec<DType>,
    /// Whether it is a GPU.
    pub(crate) is_gpu: bool,
    /// Whether it is a GPU that the CPU imitates: a thousand times slower than either.
    pub(crate) is_slow: bool,
}

impl Site {
    /// Whether a case of so many multiplications is worth the wait.
    pub(crate) fn has_time_for(&self, multiplications: usize) -> bool {
        !self.is_slow || multiplications <= 40_000_000
    }
}

/// Runs a check, `fn(&Site)` generic over the backend, on every instruction set of the CPU and on every GPU that this
/// build and this machine have.
macro_rules! everywhere {
    ($check:ident) => {{
        $crate::support::on_every_set(|site| $check::<burn_flex::Flex>(site));
        #[cfg(feature = "vulkan")]
        if let Some(site) = $crate::support::vulkan() {
            $check::<tune_kernels::gpu::Wgpu>(&site);
        }
        #[cfg(feature = "cuda")]
        if let Some(site) = $crate::support::cuda() {
            $check::<tune_kernels::gpu::Cuda>(&site);
        }
    }};
}
pub(crate) use everywhere;

/// Deterministic numbers in [−1, 1) · `size` (xorshift).
pub(crate) fn random(count: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size
        })
        .collect()
}

/// What `values` become when stored in `dtype`.
pub(crate) fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    let data = TensorData::new(values.to_vec(), [values.len()]).convert_dtype(dtype);
    data.iter::<f32>().collect()
}

/// Random numbers that `dtype` can hold.
pub(crate) fn random_in(count: usize, seed: u64, size: f32, dtype: DType) -> Vec<f32> {
    rounded(&random(count, seed, size), dtype)
}

/// A tensor of `dtype`.
pub(crate) fn tensor<B: Backend, const D: usize>(
    values: &[f32],
    shape: [usize; D],
    dtype: DType,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&B::Device::default(), dtype))
}

/// An integer tensor, as the data room makes them.
pub(crate) fn ids<B: Backend>(values: &[i32]) -> Tensor<B, 1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &B::Device::default())
}

/// All values in f32.
pub(crate) fn values<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

/// Runs `body` on every instruction set that this machine has.
pub(crate) fn on_every_set(body: impl Fn(&Site)) {
    let sets: Vec<_> = InstructionSet::ALL.into_iter().filter(|set| set.is_available()).collect();
    assert!(sets.contains(&InstructionSet::Portable) && sets.contains(&InstructionSet::best()));
    for set in sets {
        let dtypes = vec![DType::F32, DType::BF16, DType::F16];
        let site = Site { name: set.name().to_owned(), dtypes, is_gpu: false, is_slow: false };
        set.run(|| body(&site)).expect("the set is available");
    }
}

/// The Vulkan device, if there is one.
#[cfg(feature = "vulkan")]
pub(crate) fn vulkan() -> Option<Site> {
    gpu::<burn_wgpu::WgpuRuntime>(tune_kernels::gpu::wgpu_devices())
}

/// The CUDA device, if there is one.
#[cfg(feature = "cuda")]
pub(crate) fn cuda() -> Option<Site> {
    gpu::<burn_cuda::CudaRuntime>(tune_kernels::gpu::cuda_devices())
}

#[cfg(any(feature = "vulkan", feature = "cuda"))]
fn gpu<R: burn_cubecl::CubeRuntime>(
    found: Result<Vec<tune_kernels::gpu::Found<R::Device>>, tune_kernels::gpu::Unusable>,
) -> Option<Site> {
    match found {
        Ok(devices) => devices.into_iter().next().map(|found| Site {
            name: found.name,
            dtypes: tune_kernels::gpu::dtypes::<R>(&R::Device::default()),
            is_gpu: true,
            is_slow: found.is_software,
        }),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

/// Relative error that `dtype` may cost: rounding of the result, with some room for sums.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-6,
        DType::F16 => 1e-3,
        _ => 6e-3,
    }
}

/// Compares by the norm of the difference, relative to the norm of what is expected, and each element by the
/// largest one.
#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let square = |x: f32| f64::from(x) * f64::from(x);
    let norm = expected.iter().map(|x| square(*x)).sum::<f64>().sqrt();
    let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
    let difference = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum::<f64>().sqrt();
    assert!(difference <= tolerance * norm + 1e-30, "{what}: relative error {:.2e}", difference / norm);
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = f64::from((found - expected).abs());
        assert!(error <= 4.0 * tolerance * largest + 1e-30, "{what}[{index}]: {found} instead of {expected}");
    }
}
