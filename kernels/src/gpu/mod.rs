//! GPUs: the runtimes of CubeCL in this build, as backends of the ops, and the devices that each finds on this machine,
//! without starting any. What is missing is reported with its remedy, for a runtime started without its driver would panic.

#[cfg(feature = "cuda")]
mod context;
#[cfg(feature = "cuda")]
mod cuda;
mod dtypes;
mod found;
#[cfg(feature = "cuda")]
pub(crate) mod pinned;
mod profile;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
mod start;
#[cfg(any(feature = "vulkan", feature = "metal"))]
mod wgpu;

use std::path::Path;
use std::sync::Arc;

#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
use burn_cubecl::CubeBackend;
use cubecl::config::cache::CacheConfig;
use cubecl::config::memory::PersistentMemory;
use cubecl::config::profiling::ProfilingLogLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

#[cfg(feature = "cuda")]
pub use burn_cuda::CudaDevice;
#[cfg(any(feature = "vulkan", feature = "metal"))]
pub use burn_wgpu::WgpuDevice;
#[cfg(feature = "cuda")]
pub use cuda::{cuda_devices, cuda_memory, start_cuda};
pub use dtypes::dtypes;
pub use found::{Found, Kind, Memory, Unusable};
pub use profile::{KernelTime, Profile};
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
pub use start::Started;
#[cfg(any(feature = "vulkan", feature = "metal"))]
pub use wgpu::{start_wgpu, wgpu_devices, wgpu_memory};

pub use crate::cube::product::with_plain_products;

/// Vulkan or Metal, through wgpu.
#[cfg(any(feature = "vulkan", feature = "metal"))]
pub type Wgpu = CubeBackend<cubecl::wgpu::WgpuRuntime, f32, i32, u32>;

/// CUDA.
#[cfg(feature = "cuda")]
pub type Cuda = CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u8>;

/// Sets CubeCL up, before any device is started; later calls change nothing. Compiled kernels are kept in the folder
/// `cache`, if there is one, in a folder for each version of their code; nothing there is ever removed. With the file `profile` every launch is timed by itself, and waited for ([`Profile`]).
///
/// Without this CubeCL would look for a file of settings in the working directory and above.
pub fn configure(cache: Option<&Path>, profile: Option<&Path>) {
    let mut config = CubeClRuntimeConfig::default();
    if let Some(file) = profile {
        config.profiling.logger.level = ProfilingLogLevel::Basic;
        config.profiling.logger.file = Some(file.to_path_buf());
    }
    // A buffer of its own size for each tensor, which the next one of that size takes over, in place of pages that stand half
    // empty. Sizes that come no more are given back by `cube::passes`.
    config.memory.persistent_memory = PersistentMemory::Enforced;
    config.compilation.cache = cache.map(|folder| CacheConfig::File(folder.join(env!("TUNE_KERNELS"))));
    // `CubeClRuntimeConfig::set` panics where this does nothing.
    let mut slot = CubeClRuntimeConfig::storage().lock();
    slot.get_or_insert_with(|| Arc::new(config));
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
