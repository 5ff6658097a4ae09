//! Which backend a run computes on: the only place that names concrete ones.

use tune_kernels::KernelBackend;

use crate::model::FloatDtype;
use crate::recipe::DeviceSpec;

/// The processor, through burn's Flex backend and our own kernels.
pub type Cpu = burn_flex::Flex;

/// A device that a run can compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
}

/// Something to be done on whichever backend a device has.
pub trait OnBackend {
    /// What comes of it.
    type Output;

    /// Does it on backend `B`.
    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output;
}

impl Device {
    /// The device a recipe asks for; `auto` is the best there is.
    pub fn of(spec: DeviceSpec) -> Self {
        match spec {
            DeviceSpec::Auto | DeviceSpec::Cpu => Self::Cpu,
        }
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
        }
    }

    /// Whether it multiplies numbers of this type without converting them first.
    pub fn is_native(self, dtype: FloatDtype) -> bool {
        match self {
            Self::Cpu => dtype == FloatDtype::F32,
        }
    }

    /// Whether it can compute in this type at all.
    pub fn supports(self, dtype: FloatDtype) -> bool {
        match (self, dtype) {
            (Self::Cpu, FloatDtype::F32 | FloatDtype::Bf16 | FloatDtype::F16) => true,
        }
    }

    /// Runs `work` on the backend of this device.
    pub fn run<W: OnBackend>(self, work: W) -> W::Output {
        match self {
            Self::Cpu => work.call::<Cpu>(&Default::default()),
        }
    }
}
