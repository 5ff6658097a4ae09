//! Devices and their backends: the only room that names concrete backends.
//!
//! Devices are discovered ([`list`]), one is chosen and tested ([`Device::choose`]), and then runs work that is generic
//! over its backend ([`Device::run`]) on the calling thread, because the memory pools of a GPU belong to a thread.
#![doc = include_str!("devices.md")]

mod choice;
mod discovery;
mod failure;

use std::path::Path;

use serde::Serialize;
use tune_kernels::KernelBackend;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
use tune_kernels::fault;
use tune_kernels::isa::InstructionSet;

pub use choice::Unavailable;
pub use discovery::{Api, Found, Listed, list};
pub use failure::Failed;

use crate::model::FloatDtype;
use crate::recipe::{DeviceId, DeviceSpec};
use crate::train::process;
use discovery::Handle;

/// The CPU: burn's Flex backend with our own kernels.
pub type Cpu = burn_flex::Flex;

/// Largest share of the free memory for a run without a memory budget: other processes need some, and plans are not
/// exact.
pub const SHARE: f64 = 0.9;

/// Memory of a GPU that CUDA's context and the loaded kernels take beside all tensors.
pub const CUDA_CONTEXT: u64 = 448 << 20;

/// A device that was found and computed correctly when it was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    id: DeviceId,
    handle: Handle,
    /// Its name from the driver; empty for the CPU.
    model: String,
    dtypes: Vec<FloatDtype>,
    /// Largest buffer in bytes; `None` for the CPU.
    largest_buffer: Option<u64>,
    notes: Vec<String>,
}

/// Capabilities of a started device.
#[derive(Clone, Debug, PartialEq)]
struct Started {
    /// Supported compute dtypes.
    dtypes: Vec<FloatDtype>,
    /// Largest buffer in bytes; `None` for the CPU.
    largest_buffer: Option<u64>,
    /// What it can do without, in words.
    lacks: Vec<String>,
}

/// Work that is generic over the backend.
pub trait OnBackend {
    /// Its result.
    type Output;

    /// Runs it on backend `B`.
    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output;
}

/// Configures the GPU runtimes before any device is started: compiled kernels are stored in the folder `cache`; with
/// the file `profile` every kernel launch is timed separately ([`Profiler`]), which is slow. Does nothing in a build
/// without GPU support.
pub fn configure(cache: Option<&Path>, profile: Option<&Path>) {
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
    tune_kernels::gpu::configure(cache, profile);
    #[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal")))]
    let _ = (cache, profile);
}

/// The launches of one GPU kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelTime {
    /// Its name in the source.
    pub name: String,
    /// Number of launches.
    pub launches: u64,
    /// Total seconds of its launches, by the device's clock.
    pub seconds: f64,
}

/// Reads the kernel times from the `profile` file of [`configure`].
#[derive(Debug)]
pub struct Profiler {
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
    profile: tune_kernels::gpu::Profile,
}

impl Profiler {
    /// A profiler that reads this file.
    pub fn new(file: &Path) -> Self {
        let _ = file;
        Self {
            #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
            profile: tune_kernels::gpu::Profile::new(file),
        }
    }

    /// The kernels since the last call, after waiting for the device.
    ///
    /// # Errors
    /// The times cannot be read.
    pub fn take(&mut self) -> std::io::Result<Vec<KernelTime>> {
        #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
        let kernels = self.profile.take()?.into_iter().map(|kernel| KernelTime {
            name: kernel.name,
            launches: kernel.launches,
            seconds: kernel.time.as_secs_f64(),
        });
        #[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal")))]
        let kernels = std::iter::empty();
        Ok(kernels.collect())
    }
}

impl Device {
    /// The processor.
    pub fn cpu() -> Self {
        Self {
            id: DeviceId::Cpu,
            handle: Handle::Cpu,
            model: String::new(),
            dtypes: vec![FloatDtype::F32, FloatDtype::Bf16, FloatDtype::F16],
            largest_buffer: None,
            notes: Vec::new(),
        }
    }

    /// The device that a recipe requests, started and tested. `auto` is the best that works: CUDA, then a GPU of Vulkan
    /// or Metal, then the CPU; an emulated GPU is used only if it is named.
    ///
    /// # Errors
    /// [`Unavailable`]: the cause, the available devices, and the remedy.
    pub fn choose(spec: DeviceSpec) -> Result<Self, Unavailable> {
        match spec {
            // Needs no discovery.
            DeviceSpec::Named(DeviceId::Cpu) => Ok(Self::cpu()),
            _ => choice::choose(spec, list(), discovery::start),
        }
    }

    /// The device's id: its kind, and the index of a GPU.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// Its name for messages and records: `cpu`, `cuda:0 (NVIDIA …)`.
    pub fn name(&self) -> String {
        match self.model.as_str() {
            "" => self.id.to_string(),
            model => format!("{} ({model})", self.id),
        }
    }

    /// What it is, without its number: devices of one kind compute alike.
    pub fn kind(&self) -> String {
        let id = self.id.to_string();
        format!("{} ({})", id.split(':').next().unwrap_or(&id), self.model)
    }

    /// The GPUs that CUDA finds, by their numbers.
    pub fn cuda_devices() -> Vec<usize> {
        let index = |listed: Listed| match listed.id {
            DeviceId::Cuda(index) => Some(index),
            _ => None,
        };
        let found = list().into_iter().flat_map(|api| match api.found {
            Found::Devices(devices) => devices,
            Found::NotBuilt | Found::Nothing { .. } => Vec::new(),
        });
        found.filter_map(index).collect()
    }

    /// Notes about the choice: GPUs that were skipped, and why, and what the device can do without.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether its tensors are in its own memory instead of the process's.
    pub fn has_own_memory(&self) -> bool {
        self.handle != Handle::Cpu
    }

    /// Whether it multiplies this dtype without converting it first.
    pub fn is_native(&self, dtype: FloatDtype) -> bool {
        match self.id {
            DeviceId::Cpu => match dtype {
                FloatDtype::F32 => true,
                FloatDtype::Bf16 => InstructionSet::best().multiplies_bf16(),
                FloatDtype::F16 => false,
            },
            DeviceId::Cuda(_) | DeviceId::Vulkan(_) | DeviceId::Metal => self.supports(dtype),
        }
    }

    /// Whether it supports this dtype.
    pub fn supports(&self, dtype: FloatDtype) -> bool {
        self.dtypes.contains(&dtype)
    }

    /// The supported dtypes.
    pub fn dtypes(&self) -> &[FloatDtype] {
        &self.dtypes
    }

    /// Largest tensor in bytes, if the device has such a limit below its memory.
    pub fn largest_buffer(&self) -> Option<u64> {
        self.largest_buffer
    }

    /// What the driver takes of the device's memory for this process; small but with CUDA.
    pub fn context_bytes(&self) -> u64 {
        match self.id {
            DeviceId::Cuda(_) => CUDA_CONTEXT,
            DeviceId::Cpu | DeviceId::Vulkan(_) | DeviceId::Metal => 0,
        }
    }

    /// Memory that a run may plan with now, in bytes: a share of the free memory, plus what the process holds already: all
    /// of it on the CPU, its context on a GPU. `None` if the driver does not report it.
    pub fn memory_for_a_run(&self) -> Option<u64> {
        self.memory_for_one_of(1)
    }

    /// The same for each of several processes that share the memory.
    pub fn memory_for_one_of(&self, processes: u64) -> Option<u64> {
        let share = |free: u64| (free as f64 * SHARE) as u64 / processes;
        match self.handle {
            Handle::Cpu => {
                let program = process::resident_bytes().unwrap_or(0);
                process::available_bytes().map(|free| program + share(free))
            }
            #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
            _ => {
                let memory = self.handle.memory()?;
                // The device was started, so what is free is so beside its context.
                let context = if memory.free.is_some() { self.context_bytes() } else { 0 };
                Some(context + share(memory.free.unwrap_or(memory.total)))
            }
        }
    }

    /// Runs `work` on the backend of this device.
    ///
    /// # Errors
    /// [`Failed`]: the device failed during the work, for example out of memory.
    pub fn run<W: OnBackend>(&self, work: W) -> Result<W::Output, Failed> {
        match &self.handle {
            Handle::Cpu => Ok(work.call::<Cpu>(&Default::default())),
            #[cfg(feature = "cuda")]
            Handle::Cuda(device) => self.guarded(|| work.call::<tune_kernels::gpu::Cuda>(device)),
            #[cfg(any(feature = "vulkan", feature = "metal"))]
            Handle::Wgpu(device) => self.guarded(|| work.call::<tune_kernels::gpu::Wgpu>(device)),
        }
    }

    /// Runs `work` on a GPU. When a device fails, its runtime panics on this thread or on one of its own, where only
    /// [`fault`] notices. `work` and its tensors are then dropped, and the device is not used again.
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
    fn guarded<T>(&self, work: impl FnOnce() -> T) -> Result<T, Failed> {
        fault::listen();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // The first failure decides, even if the work returned: results computed after it are wrong.
        match (fault::raised(), done) {
            (Some(fault), _) => Err(Failed::new(self.name(), &fault)),
            (None, Ok(done)) => Ok(done),
            (None, Err(panic)) => {
                Err(Failed::new(self.name(), &tune_kernels::check::panic_message(panic.as_ref())))
            }
        }
    }
}
