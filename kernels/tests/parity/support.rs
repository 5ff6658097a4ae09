//! Where parity tests run, their tensors from f32, and the comparison that all of them share.

#[cfg(any(feature = "vulkan", feature = "cuda"))]
use std::io::Write;

use burn_tensor::backend::Backend;
use burn_tensor::{DType, Tensor, TensorData};
use tune_kernels::check::{Deviation, On};
pub(crate) use tune_kernels::check::{random, random_in, tolerance, values};
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
    /// For a check of the library, on the backend's default device.
    pub(crate) fn on<B: Backend>(device: &B::Device, dtype: DType) -> On<'_, B> {
        On { device, dtype }
    }

    /// Whether a case of so many multiplications is worth the wait.
    pub(crate) fn has_time_for(&self, multiplications: usize) -> bool {
        !self.is_slow || multiplications <= 40_000_000
    }

    /// Whether there is time for every variant of a kernel: where a CPU compiles and imitates them, by night alone, as
    /// `TUNE_EVERY_VARIANT` says.
    pub(crate) fn has_time_for_every_variant(&self) -> bool {
        !self.is_slow || std::env::var_os("TUNE_EVERY_VARIANT").is_some()
    }
}

/// Runs a check, `fn(&Site)` generic over the backend, on every GPU that this build and this machine have; where there
/// is none, as in a build without GPUs, on every instruction set of the CPU.
macro_rules! everywhere {
    ($check:ident) => {{
        let on_gpu = false;
        #[cfg(feature = "vulkan")]
        let on_gpu = on_gpu | $crate::support::vulkan().inspect($check::<tune_kernels::gpu::Wgpu>).is_some();
        #[cfg(feature = "cuda")]
        let on_gpu = on_gpu | $crate::support::cuda().inspect($check::<tune_kernels::gpu::Cuda>).is_some();
        if !on_gpu {
            $crate::support::on_every_set(|site| $check::<burn_flex::Flex>(site));
        }
    }};
}
pub(crate) use everywhere;

/// A tensor of `dtype`.
pub(crate) fn tensor<B: Backend, const D: usize>(
    values: &[f32],
    shape: [usize; D],
    dtype: DType,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&B::Device::default(), dtype))
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

/// The Vulkan device, if there is one. With `TUNE_REQUIRE_VULKAN` set, as in CI, a machine without one fails the test.
#[cfg(feature = "vulkan")]
pub(crate) fn vulkan() -> Option<Site> {
    let site = gpu::<burn_wgpu::WgpuRuntime>(tune_kernels::gpu::wgpu_devices());
    let is_required = std::env::var_os("TUNE_REQUIRE_VULKAN").is_some();
    assert!(site.is_some() || !is_required, "TUNE_REQUIRE_VULKAN is set, and there is no Vulkan device");
    site
}

/// The CUDA device, if there is one.
#[cfg(feature = "cuda")]
pub(crate) fn cuda() -> Option<Site> {
    let found = tune_kernels::gpu::cuda_devices();
    if found.is_ok() {
        tune_kernels::gpu::start_cuda(&Default::default()).expect("the device starts");
    }
    gpu::<burn_cuda::CudaRuntime>(found)
}

#[cfg(any(feature = "vulkan", feature = "cuda"))]
fn gpu<R: burn_cubecl::CubeRuntime>(
    found: Result<Vec<tune_kernels::gpu::Found<R::Device>>, tune_kernels::gpu::Unusable>,
) -> Option<Site> {
    match found {
        Ok(devices) => devices.into_iter().next().map(|found| {
            let device = R::Device::default();
            if found.is_software()
                && let Ok(bits) = std::env::var("LP_NATIVE_VECTOR_WIDTH")
            {
                // Lavapipe's planes are as wide as its vectors.
                let planes = R::client(&device).properties().hardware.plane_size_max * 32;
                assert_eq!(planes.to_string(), bits, "LP_NATIVE_VECTOR_WIDTH names another size of planes");
            }
            Site {
                is_slow: found.is_software(),
                name: found.name,
                dtypes: tune_kernels::gpu::dtypes::<R>(&device),
                is_gpu: true,
            }
        }),
        Err(why) => {
            // Past the harness, which would keep it to itself.
            let _ = writeln!(std::io::stdout(), "skipped: {why}");
            None
        }
    }
}

/// Asserts that rounding alone explains what a check measured.
#[track_caller]
pub(crate) fn assert_within(what: &str, found: Vec<Deviation>) {
    assert!(!found.is_empty(), "{what}: nothing was measured");
    for deviation in found {
        assert!(deviation.is_within_tolerance(), "{what}: {deviation}");
    }
}

/// Compares by the norm of the difference, relative to the norm of what is expected, and each element by the
/// largest one.
#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_within(what, vec![Deviation::new("result", "this", found, expected, tolerance)]);
}
