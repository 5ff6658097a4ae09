//! Which GPUs there are: the runtimes of CubeCL that this build holds, as backends of the ops, and the devices that
//! each finds on this machine, asked without starting any. What is missing is told with what brings it: a runtime that
//! is started without its driver would panic.

mod cache;
#[cfg(feature = "cuda")]
mod cuda;
mod profile;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
mod start;
#[cfg(any(feature = "vulkan", feature = "metal"))]
mod wgpu;

use std::path::Path;
use std::sync::Arc;

use burn::tensor::DType;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
use burn_cubecl::CubeBackend;
use cubecl::config::cache::CacheConfig;
use cubecl::config::profiling::ProfilingLogLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl::features::TypeUsage;
use cubecl::prelude::*;

#[cfg(feature = "cuda")]
pub use burn_cuda::CudaDevice;
#[cfg(any(feature = "vulkan", feature = "metal"))]
pub use burn_wgpu::WgpuDevice;
#[cfg(feature = "cuda")]
pub use cuda::{cuda_devices, cuda_memory, start_cuda};
pub use profile::{KernelTime, Profile};
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
pub use start::Started;
#[cfg(any(feature = "vulkan", feature = "metal"))]
pub use wgpu::{start_wgpu, wgpu_devices, wgpu_memory};

pub use crate::cube::product::with_plain_products;
use crate::memory::DeviceMemory;

/// Vulkan or Metal, through wgpu.
#[cfg(any(feature = "vulkan", feature = "metal"))]
pub type Wgpu = CubeBackend<cubecl::wgpu::WgpuRuntime, f32, i32, u32>;

/// CUDA.
#[cfg(feature = "cuda")]
pub type Cuda = CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u8>;

/// What a device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A card with memory of its own.
    Discrete,
    /// Beside the processor, in its memory.
    Integrated,
    /// Handed through by a hypervisor.
    Virtual,
    /// A processor that imitates a GPU.
    Software,
}

impl Kind {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Software => "software",
        }
    }
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What this process may still take, where the driver tells.
    pub free: Option<u64>,
}

/// A GPU that can be computed on.
#[derive(Clone, Debug)]
pub struct Found<D> {
    /// What burn calls it.
    pub device: D,
    /// What its driver calls it.
    pub name: String,
    /// The driver, with its version.
    pub driver: String,
    /// What it is made of.
    pub kind: Kind,
    /// How much memory it has, where the driver tells.
    pub memory: Option<Memory>,
}

impl<D> Found<D> {
    /// Whether the CPU imitates it.
    pub fn is_software(&self) -> bool {
        self.kind == Kind::Software
    }
}

/// Why there is no GPU to be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No driver, or no device that it knows.
    #[error("no {0} device: there is none, or its driver is not installed")]
    NoDevice(&'static str),
    /// The CUDA driver is not there.
    #[error("the CUDA driver (libcuda) is not installed")]
    NoCudaDriver,
    /// The CUDA driver is there and refuses.
    #[error("the CUDA driver does not work: {0}")]
    CudaDriver(String),
    /// NVRTC, which compiles kernels, is not there.
    #[error("NVRTC (libnvrtc), which compiles the kernels, is not installed")]
    NoNvrtc,
    /// NVRTC is newer than the driver, which cannot load what it makes.
    #[error(
        "NVRTC is of CUDA {}, and the driver knows CUDA up to {}",
        version(*.nvrtc), version(*.driver)
    )]
    NvrtcTooNew {
        /// Version of NVRTC.
        nvrtc: (i32, i32),
        /// Newest CUDA that the driver knows.
        driver: (i32, i32),
    },
    /// The headers that kernels are compiled with are not there.
    #[error("the CUDA headers (cuda_runtime.h, cuda_fp16.h, cuda_bf16.h, mma.h) are not in {0}")]
    NoCudaHeaders(String),
}

fn version((major, minor): (i32, i32)) -> String {
    format!("{major}.{minor}")
}

impl Unusable {
    /// What to install.
    pub fn help(&self) -> &'static str {
        match self {
            Self::NoDevice("Metal") => "Metal needs a Mac with an Apple or AMD GPU, and no further software",
            Self::NoDevice(_) => {
                "Vulkan needs only a driver. Debian/Ubuntu: `apt install mesa-vulkan-drivers libvulkan1` (AMD, Intel; \
                 for NVIDIA the package nvidia-driver); Fedora: `dnf install mesa-vulkan-drivers vulkan-loader`; \
                 Arch: `pacman -S vulkan-icd-loader` and vulkan-radeon, vulkan-intel or nvidia-utils"
            }
            Self::NoCudaDriver | Self::CudaDriver(_) => {
                "install NVIDIA's driver. Debian: `apt install nvidia-driver libcuda1`; Ubuntu: `ubuntu-drivers install`; \
                 Fedora (RPM Fusion): `dnf install akmod-nvidia xorg-x11-drv-nvidia-cuda`; Arch: `pacman -S nvidia \
                 nvidia-utils`; in a container, start it with the NVIDIA container toolkit (`--gpus all`)"
            }
            Self::NoNvrtc | Self::NoCudaHeaders(_) => {
                "install the CUDA toolkit. Debian/Ubuntu: `apt install nvidia-cuda-toolkit`; Fedora: cuda-toolkit from \
                 NVIDIA's repository; Arch: `pacman -S cuda`. Or without root, for a driver of CUDA 13 (580 or newer): \
                 `pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl`, then set \
                 CUDA_PATH to the folder nvidia/cu13 of site-packages and LD_LIBRARY_PATH to its lib. A build with the \
                 feature `vulkan` needs only the driver"
            }
            Self::NvrtcTooNew { .. } => {
                "update NVIDIA's driver, or install a CUDA toolkit no newer than it; a build with the feature `vulkan` \
                 needs neither"
            }
        }
    }
}

/// Sets CubeCL up, before any device is started; later calls change nothing. Compiled kernels are kept in the folder
/// `cache`, if there is one, apart from those of any other version of their code, which are removed when nobody has used
/// them for a month. With the file `profile` every launch is timed by itself, and waited for ([`Profile`]).
///
/// Without this CubeCL would look for a file of settings in the working directory and above.
pub fn configure(cache: Option<&Path>, profile: Option<&Path>) {
    let mut config = CubeClRuntimeConfig::default();
    if let Some(file) = profile {
        config.profiling.logger.level = ProfilingLogLevel::Basic;
        config.profiling.logger.file = Some(file.to_path_buf());
    }
    config.compilation.cache =
        cache.map(|folder| CacheConfig::File(cache::take(folder, env!("TUNE_KERNELS"))));
    // `CubeClRuntimeConfig::set` panics where this does nothing.
    let mut slot = CubeClRuntimeConfig::storage().lock();
    slot.get_or_insert_with(|| Arc::new(config));
}

/// The dtypes of f32, bf16 and f16 that a device computes in. Starts it.
pub fn dtypes<R: Runtime>(device: &R::Device) -> Vec<DType> {
    let client = R::client(device);
    let features = &client.properties().features;
    let has = |dtype: &DType| {
        let usage = features.type_usage((*dtype).into());
        usage.contains(TypeUsage::Buffer) && usage.contains(TypeUsage::Conversion)
    };
    [DType::F32, DType::BF16, DType::F16].into_iter().filter(has).collect()
}

/// What the calling thread's pools on a device hold.
pub(crate) fn usage<R: Runtime>(device: &R::Device) -> Option<DeviceMemory> {
    let usage = R::client(device).memory_usage().ok()?;
    Some(DeviceMemory { in_use: usage.bytes_in_use, reserved: usage.bytes_reserved })
}

#[cfg(all(test, any(feature = "cuda", feature = "vulkan", feature = "metal")))]
mod tests {
    use super::*;

    /// Whatever this machine has or lacks, looking for it neither panics nor starts anything.
    #[test]
    fn looking_for_devices_never_panics() {
        #[cfg(feature = "cuda")]
        match cuda_devices() {
            Ok(devices) => assert!(devices.iter().all(|found| found.memory.is_some())),
            Err(why) => assert!(!why.help().is_empty() && !why.to_string().is_empty()),
        }
        #[cfg(any(feature = "vulkan", feature = "metal"))]
        match wgpu_devices() {
            Ok(devices) => {
                assert!(devices.is_sorted_by_key(|found| found.kind));
                for found in devices {
                    let memory = found.memory.map(|memory| (memory.total, memory.free));
                    assert!(memory.is_none_or(|(total, _)| total > 0), "{} {memory:?}", found.name);
                }
            }
            Err(why) => assert!(matches!(why, Unusable::NoDevice(_))),
        }
    }
}
