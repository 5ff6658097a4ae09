//! Which backend a run computes on: the only place that names concrete ones.
//!
//! A device is found ([`list`]), chosen by the recipe's word and tried out ([`Device::choose`]), and then runs work that
//! is generic over its backend ([`Device::run`]). What it works on, it works on from the calling thread: the memory
//! pools of a GPU belong to a thread.

mod choice;
mod discovery;

use std::path::Path;

use tune_kernels::KernelBackend;
use tune_kernels::isa::InstructionSet;

pub use choice::Unavailable;
pub use discovery::{Api, Found, Listed, list};

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
    notes: Vec<String>,
}

/// Something to be done on whichever backend a device has.
pub trait OnBackend {
    /// What comes of it.
    type Output;

    /// Does it on backend `B`.
    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output;
}

/// Sets the GPU runtimes up, before any device is started: kernels that were compiled once are kept in the folder
/// `cache`. Nothing to do in a build for the processor alone.
pub fn configure(cache: Option<&Path>) {
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
    tune_kernels::gpu::configure(cache);
    #[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal")))]
    let _ = cache;
}

impl Device {
    /// The processor.
    pub fn cpu() -> Self {
        Self {
            id: DeviceId::Cpu,
            handle: Handle::Cpu,
            model: String::new(),
            dtypes: vec![FloatDtype::F32, FloatDtype::Bf16, FloatDtype::F16],
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
    pub fn run<W: OnBackend>(&self, work: W) -> W::Output {
        match &self.handle {
            Handle::Cpu => work.call::<Cpu>(&Default::default()),
            #[cfg(feature = "cuda")]
            Handle::Cuda(device) => work.call::<tune_kernels::gpu::Cuda>(device),
            #[cfg(any(feature = "vulkan", feature = "metal"))]
            Handle::Wgpu(device) => work.call::<tune_kernels::gpu::Wgpu>(device),
        }
    }
}
