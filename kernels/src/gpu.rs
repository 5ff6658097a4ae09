//! Which GPUs there are: the runtimes of CubeCL that this build holds, as backends of the ops, and the devices that
//! each finds on this machine, asked without starting any.

use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use cubecl::features::TypeUsage;
use cubecl::prelude::*;

/// Vulkan or Metal, through wgpu.
#[cfg(any(feature = "vulkan", feature = "metal"))]
pub type Wgpu = CubeBackend<cubecl::wgpu::WgpuRuntime, f32, i32, u32>;

/// CUDA.
#[cfg(feature = "cuda")]
pub type Cuda = CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u8>;

/// A GPU that can be computed on.
#[derive(Clone, Debug)]
pub struct Found<D> {
    /// What burn calls it.
    pub device: D,
    /// What its driver calls it.
    pub name: String,
    /// The driver, with its version.
    pub driver: String,
    /// Whether the CPU imitates it.
    pub is_software: bool,
}

/// Why there is no GPU to be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No driver, or no device that it knows.
    #[error("no {0} device found: is its driver installed?")]
    NoDevice(&'static str),
}

/// The devices of Vulkan (on macOS: Metal), the most capable kind first.
///
/// # Errors
/// If there is none.
#[cfg(any(feature = "vulkan", feature = "metal"))]
pub fn wgpu_devices() -> Result<Vec<Found<burn_wgpu::WgpuDevice>>, Unusable> {
    use burn_wgpu::WgpuDevice;
    use wgpu::DeviceType;

    let (backend, api) = if cfg!(target_os = "macos") {
        (wgpu::Backends::METAL, "Metal")
    } else {
        (wgpu::Backends::VULKAN, "Vulkan")
    };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: backend,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(backend));
    let kinds = [DeviceType::DiscreteGpu, DeviceType::IntegratedGpu, DeviceType::VirtualGpu, DeviceType::Cpu];
    let mut found = Vec::new();
    for kind in kinds {
        let infos = adapters.iter().map(wgpu::Adapter::get_info).filter(|info| info.device_type == kind);
        for (index, info) in infos.enumerate() {
            let device = match kind {
                DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(index),
                DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(index),
                DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(index),
                _ => WgpuDevice::Cpu,
            };
            let driver = format!("{} {}", info.driver, info.driver_info);
            found.push(Found { device, name: info.name, driver, is_software: kind == DeviceType::Cpu });
        }
    }
    if found.is_empty() { Err(Unusable::NoDevice(api)) } else { Ok(found) }
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
