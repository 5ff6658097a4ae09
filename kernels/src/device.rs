//! What a backend's device offers beside the ops: numbers read back without waiting, its memory, and where many small
//! ops fork at the least cost.

use std::sync::atomic::{AtomicU64, Ordering};

use burn_tensor::Tensor;
use burn_tensor::backend::Backend;

/// Numbers that are on their way from the device.
pub struct Reading(Box<dyn FnOnce() -> Result<Vec<f32>, String>>);

/// [`Reading`]s made by this process.
static READINGS: AtomicU64 = AtomicU64::new(0);

/// How often this process asked a device for numbers, with [`DeviceOps::read_later`].
pub fn readings() -> u64 {
    READINGS.load(Ordering::Relaxed)
}

impl Reading {
    pub(crate) fn new(read: impl FnOnce() -> Result<Vec<f32>, String> + 'static) -> Self {
        READINGS.fetch_add(1, Ordering::Relaxed);
        Self(Box::new(read))
    }

    /// Waits for the numbers.
    ///
    /// # Errors
    /// What went wrong on the device, in its driver's words.
    pub fn wait(self) -> Result<Vec<f32>, String> {
        (self.0)()
    }
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Reading")
    }
}

/// Bytes that tensors take on a device with memory of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Held by tensors now.
    pub in_use: u64,
    /// Taken from the device: held by tensors, or free in the pools.
    pub reserved: u64,
}

impl DeviceMemory {
    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { in_use: self.in_use.max(other.in_use), reserved: self.reserved.max(other.reserved) }
    }
}

/// The device of a backend.
pub trait DeviceOps: Backend {
    /// Asks the device for a few f32 numbers without waiting for its work. Later launches run behind this copy.
    fn read_later(numbers: Tensor<Self, 1>) -> Reading {
        let data = numbers.try_into_data().map_err(|error| format!("{error:?}"));
        let numbers = data.and_then(|data| data.into_vec::<f32>().map_err(|error| format!("{error:?}")));
        Reading::new(move || numbers)
    }

    /// Runs work of many small ops, such as a token's pass over all layers, where they fork at the least cost.
    fn on_workers<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    /// Memory of the calling thread's tensors on `device`; `None` where they lie in the process's own memory.
    fn device_memory(_device: &Self::Device) -> Option<DeviceMemory> {
        None
    }

    /// Runs `work` and returns the largest [`Self::device_memory`] during it. Slower than `work` alone: every buffer that
    /// an op takes is counted.
    fn peak_memory<T>(work: impl FnOnce() -> T) -> (T, Option<DeviceMemory>) {
        (work(), None)
    }
}
