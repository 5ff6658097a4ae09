//! Discovery of devices: the GPU interfaces, whether this build supports them, and their devices.

use super::Started;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
use crate::model::FloatDtype;
use crate::recipe::DeviceId;

/// A backend's id of a device.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Handle {
    /// The CPU.
    Cpu,
    /// CUDA.
    #[cfg(feature = "cuda")]
    Cuda(tune_kernels::gpu::CudaDevice),
    /// Vulkan or Metal.
    #[cfg(any(feature = "vulkan", feature = "metal"))]
    Wgpu(tune_kernels::gpu::WgpuDevice),
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Total memory.
    pub total: u64,
    /// Free memory, if the driver reports it.
    pub free: Option<u64>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// Its name in a recipe.
    pub id: DeviceId,
    /// Its name from the driver.
    pub name: String,
    /// The driver, with its version.
    pub driver: String,
    /// Its kind: discrete, integrated, virtual or software.
    pub kind: &'static str,
    /// Whether it is emulated by the CPU.
    pub is_software: bool,
    /// Its memory, if the driver reports it.
    pub memory: Option<DeviceMemory>,
    pub(super) handle: Handle,
}

/// The result of discovery through one GPU interface.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// This build does not support it.
    NotBuilt,
    /// A driver or library is missing.
    Nothing {
        /// What.
        why: String,
        /// What to install.
        help: &'static str,
    },
    /// The devices, most capable first.
    Devices(Vec<Listed>),
}

/// A GPU interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Api {
    /// Its name, also that of the build feature.
    pub name: &'static str,
    /// The result of discovery.
    pub found: Found,
}

impl Api {
    /// The devices found.
    pub fn devices(&self) -> &[Listed] {
        match &self.found {
            Found::Devices(devices) => devices,
            Found::NotBuilt | Found::Nothing { .. } => &[],
        }
    }
}

/// The GPU interfaces of this system, fastest first. Starts no device.
pub fn list() -> Vec<Api> {
    let mut apis = vec![Api { name: "cuda", found: cuda() }];
    apis.push(match cfg!(target_os = "macos") {
        true => Api { name: "metal", found: wgpu(cfg!(feature = "metal"), |_| DeviceId::Metal) },
        false => Api { name: "vulkan", found: wgpu(cfg!(feature = "vulkan"), DeviceId::Vulkan) },
    });
    apis
}

#[cfg(feature = "cuda")]
fn cuda() -> Found {
    match tune_kernels::gpu::cuda_devices() {
        Ok(devices) => all(devices, DeviceId::Cuda, Handle::Cuda),
        Err(why) => Found::Nothing { why: why.to_string(), help: why.help() },
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Found {
    Found::NotBuilt
}

#[cfg(any(feature = "vulkan", feature = "metal"))]
fn wgpu(is_built: bool, id: impl Fn(usize) -> DeviceId) -> Found {
    match tune_kernels::gpu::wgpu_devices() {
        _ if !is_built => Found::NotBuilt,
        Ok(devices) => all(devices, id, Handle::Wgpu),
        Err(why) => Found::Nothing { why: why.to_string(), help: why.help() },
    }
}

#[cfg(not(any(feature = "vulkan", feature = "metal")))]
fn wgpu(_: bool, _: impl Fn(usize) -> DeviceId) -> Found {
    Found::NotBuilt
}

#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
fn all<D>(
    devices: Vec<tune_kernels::gpu::Found<D>>,
    id: impl Fn(usize) -> DeviceId,
    handle: impl Fn(D) -> Handle,
) -> Found {
    let listed = |(index, found): (usize, tune_kernels::gpu::Found<D>)| Listed {
        id: id(index),
        is_software: found.is_software(),
        kind: found.kind.name(),
        memory: found.memory.map(|memory| DeviceMemory { total: memory.total, free: memory.free }),
        name: found.name,
        driver: found.driver,
        handle: handle(found.device),
    };
    Found::Devices(devices.into_iter().enumerate().map(listed).collect())
}

/// Starts a device and returns its capabilities, or the error.
pub(super) fn start(listed: &Listed) -> Result<Started, String> {
    match &listed.handle {
        Handle::Cpu => {
            Ok(Started { dtypes: super::Device::cpu().dtypes, largest_buffer: None, lacks: Vec::new() })
        }
        #[cfg(feature = "cuda")]
        Handle::Cuda(device) => tune_kernels::gpu::start_cuda(device).map(ours),
        #[cfg(any(feature = "vulkan", feature = "metal"))]
        Handle::Wgpu(device) => tune_kernels::gpu::start_wgpu(device).map(ours),
    }
}

#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
fn ours(started: tune_kernels::gpu::Started) -> Started {
    let all = [FloatDtype::F32, FloatDtype::Bf16, FloatDtype::F16];
    let has = |dtype: &FloatDtype| started.dtypes.contains(&crate::model::dtype::burn_dtype(*dtype));
    let dtypes = all.into_iter().filter(has).collect();
    Started { dtypes, largest_buffer: Some(started.largest_buffer), lacks: started.lacks }
}

#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
impl Handle {
    /// Queries the device's memory.
    pub(super) fn memory(&self) -> Option<DeviceMemory> {
        let memory = match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => tune_kernels::gpu::cuda_memory(device),
            #[cfg(any(feature = "vulkan", feature = "metal"))]
            Self::Wgpu(device) => tune_kernels::gpu::wgpu_memory(device),
        };
        memory.map(|memory| DeviceMemory { total: memory.total, free: memory.free })
    }
}
