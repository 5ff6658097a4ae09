//! Which backend a run computes on: the only place that names concrete ones.
//!
//! A device is found ([`list`]), chosen by the recipe's word and tried out ([`Device::choose`]), and then runs work that
//! is generic over its backend ([`Device::run`]). What it works on, it works on from the calling thread: the memory
//! pools of a GPU belong to a thread.

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
use crate::train::memory;
use discovery::Handle;

/// The processor, through burn's Flex backend and our own kernels.
pub type Cpu = burn_flex::Flex;

/// Share of the free memory that a run takes at most, unless it is told how much it may use: the rest of the machine
/// needs some, and no plan is exact.
pub const SHARE: f64 = 0.9;

/// A device that a run can compute on: it was there when it was chosen, and computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    id: DeviceId,
    handle: Handle,
    /// What its driver calls it; empty for the processor.
    model: String,
    dtypes: Vec<FloatDtype>,
    /// The most bytes that one buffer may have; `None` for the processor.
    largest_buffer: Option<u64>,
    notes: Vec<String>,
}

/// What starting a device shows.
#[derive(Clone, Debug, PartialEq)]
struct Started {
    /// The types that it computes in.
    dtypes: Vec<FloatDtype>,
    /// The most bytes that one buffer may have; `None` for the processor.
    largest_buffer: Option<u64>,
}

/// Something to be done on whichever backend a device has.
pub trait OnBackend {
    /// What comes of it.
    type Output;

    /// Does it on backend `B`.
    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output;
}

/// Sets the GPU runtimes up, before any device is started: kernels that were compiled once are kept in the folder
/// `cache`; with the file `profile` every launch of a kernel is timed by itself ([`Profiler`]), which is slow. Nothing to
/// do in a build for the processor alone.
pub fn configure(cache: Option<&Path>, profile: Option<&Path>) {
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
    tune_kernels::gpu::configure(cache, profile);
    #[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal")))]
    let _ = (cache, profile);
}

/// What one kernel did on a GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelTime {
    /// Its name in the source.
    pub name: String,
    /// How often it was launched.
    pub launches: u64,
    /// What all launches took, by the device's clock.
    pub seconds: f64,
}

/// The file that kernels are timed into, as [`configure`] was told.
#[derive(Debug)]
pub struct Profiler {
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
    profile: tune_kernels::gpu::Profile,
}

impl Profiler {
    /// Of that file.
    pub fn new(file: &Path) -> Self {
        let _ = file;
        Self {
            #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
            profile: tune_kernels::gpu::Profile::new(file),
        }
    }

    /// What ran since the last call, once the device has been waited for.
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

    /// The device a recipe asks for, started and tried out. `auto` is the best that works: CUDA, then a GPU of Vulkan or
    /// Metal, then the processor; a GPU that the processor imitates is used only when it is named.
    ///
    /// # Errors
    /// [`Unavailable`]: what is missing, what there is instead, and what to install.
    pub fn choose(spec: DeviceSpec) -> Result<Self, Unavailable> {
        match spec {
            // Nothing to look for.
            DeviceSpec::Named(DeviceId::Cpu) => Ok(Self::cpu()),
            _ => choice::choose(spec, list(), discovery::start),
        }
    }

    /// Which one it is.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// Its name for people and records: `cpu`, `cuda:0 (NVIDIA …)`.
    pub fn name(&self) -> String {
        match self.model.as_str() {
            "" => self.id.to_string(),
            model => format!("{} ({model})", self.id),
        }
    }

    /// What a person should know of the choice: a GPU that was passed over.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether its tensors lie in memory of its own, not the process's.
    pub fn has_own_memory(&self) -> bool {
        self.handle != Handle::Cpu
    }

    /// Whether it multiplies numbers of this type without converting them first.
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

    /// Whether it can compute in this type at all.
    pub fn supports(&self, dtype: FloatDtype) -> bool {
        self.dtypes.contains(&dtype)
    }

    /// The types it can compute in.
    pub fn dtypes(&self) -> &[FloatDtype] {
        &self.dtypes
    }

    /// The most bytes that a tensor may have in one piece, where the device sets a limit below its memory.
    pub fn largest_buffer(&self) -> Option<u64> {
        self.largest_buffer
    }

    /// Memory that a run may plan with now, in bytes: a share of what is free, with what the process holds already where
    /// that is the memory in question. `None` where the driver does not tell.
    pub fn memory_for_a_run(&self) -> Option<u64> {
        let share = |free: u64| (free as f64 * SHARE) as u64;
        match self.handle {
            Handle::Cpu => {
                let program = memory::resident_bytes().unwrap_or(0);
                memory::available_bytes().map(|free| program + share(free))
            }
            #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
            _ => {
                let memory = self.handle.memory()?;
                Some(share(memory.free.unwrap_or(memory.total)))
            }
        }
    }

    /// Runs `work` on the backend of this device.
    ///
    /// # Errors
    /// [`Failed`]: the device gave up under way, out of memory for one.
    pub fn run<W: OnBackend>(&self, work: W) -> Result<W::Output, Failed> {
        match &self.handle {
            Handle::Cpu => Ok(work.call::<Cpu>(&Default::default())),
            #[cfg(feature = "cuda")]
            Handle::Cuda(device) => self.guarded(|| work.call::<tune_kernels::gpu::Cuda>(device)),
            #[cfg(any(feature = "vulkan", feature = "metal"))]
            Handle::Wgpu(device) => self.guarded(|| work.call::<tune_kernels::gpu::Wgpu>(device)),
        }
    }

    /// Does `work` on a GPU. The runtimes' answer to a device that gives up is to panic, here or in a thread of theirs,
    /// where nobody hears of it but [`fault`]. `work` and its tensors are dropped, and the device is not used again.
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
    fn guarded<T>(&self, work: impl FnOnce() -> T) -> Result<T, Failed> {
        fault::listen();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // What failed first, whatever came of it: what was made without a buffer is not what it should be.
        match (fault::raised(), done) {
            (Some(fault), _) => Err(Failed::new(self.name(), &fault)),
            (None, Ok(done)) => Ok(done),
            (None, Err(panic)) => {
                Err(Failed::new(self.name(), &tune_kernels::check::panic_message(panic.as_ref())))
            }
        }
    }
}
