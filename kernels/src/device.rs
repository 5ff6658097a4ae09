//! What a backend's device offers beside the ops: numbers read back without waiting, its memory, and where many small
//! ops fork at the least cost.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use burn_tensor::backend::Backend;
use burn_tensor::{DType, Int, Tensor, TensorData};

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

/// A tensor that waits in host memory until it is needed on its device again.
pub struct Parked<B: Backend>(Box<dyn FnOnce() -> Result<Tensor<B, 2>, String>>);

impl<B: Backend> Parked<B> {
    pub(crate) fn new(fetch: impl FnOnce() -> Result<Tensor<B, 2>, String> + 'static) -> Self {
        Self(Box::new(fetch))
    }

    /// Brings it back, bit for bit.
    ///
    /// # Errors
    /// What went wrong on the device, in its driver's words.
    pub fn fetch(self) -> Result<Tensor<B, 2>, String> {
        (self.0)()
    }
}

impl<B: Backend> std::fmt::Debug for Parked<B> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Parked")
    }
}

/// A mark behind work that was launched.
pub struct Fence(Box<dyn FnOnce() -> Result<(), String> + Send>);

impl Fence {
    pub(crate) fn new(wait: impl FnOnce() -> Result<(), String> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// Waits until that work is done.
    ///
    /// # Errors
    /// What went wrong on the device, in its driver's words.
    pub fn wait(self) -> Result<(), String> {
        (self.0)()
    }
}

impl std::fmt::Debug for Fence {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Fence")
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

/// [`DeviceOps::words`], uploaded as any tensor is.
pub(crate) fn words<B: Backend>(bytes: Cow<'_, [u8]>, device: &B::Device) -> Tensor<B, 1, Int> {
    let mut bytes = bytes.into_owned();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let shape = [bytes.len() / 4];
    Tensor::from_data(TensorData::from_bytes_vec(bytes, shape, DType::U32), (device, DType::U32))
}

/// The device of a backend.
pub trait DeviceOps: Backend {
    /// Asks the device for a few f32 numbers without waiting for its work. Later launches run behind this copy.
    fn read_later(numbers: Tensor<Self, 1>) -> Reading {
        let data = numbers.try_into_data().map_err(|error| format!("{error:?}"));
        let numbers = data.and_then(|data| data.into_vec::<f32>().map_err(|error| format!("{error:?}")));
        Reading::new(move || numbers)
    }

    /// Copies a tensor to host memory behind the work launched so far, without waiting for it; what is launched next may
    /// use its buffer. Where the device's memory is the host's it stays where it is.
    fn park(tensor: Tensor<Self, 2>) -> Parked<Self> {
        Parked::new(move || Ok(tensor))
    }

    /// A tensor of the 32-bit words in these bytes, little-endian, the last one padded with zeros.
    fn words(bytes: Cow<'_, [u8]>, device: &Self::Device) -> Tensor<Self, 1, Int> {
        words(bytes, device)
    }

    /// A frozen float tensor in `dtype`.
    fn upload<const D: usize>(data: TensorData, dtype: DType, device: &Self::Device) -> Tensor<Self, D> {
        Tensor::from_data(data, (device, dtype))
    }

    /// Whether tensors are best placed by a thread beside the one that launches work: each thread of a GPU has a stream and
    /// pools of its own. A buffer may go back to its pool once a [`Self::fence`] of every thread with work on it was passed.
    const PLACES_BESIDE: bool = false;

    /// Says that this thread places tensors for others: [`Self::device_memory`] of every thread counts them.
    fn place_for_others() {}

    /// A mark behind the work that this thread has launched.
    fn fence(_device: &Self::Device) -> Fence {
        Fence::new(|| Ok(()))
    }

    /// Says that a pass over `rows` rows is launched next. Free buffers of other sizes go back to the device.
    fn begin_pass(_device: &Self::Device, _rows: usize) {}

    /// Runs work of many small ops, such as a token's pass over all layers, where they fork at the least cost.
    fn on_workers<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    /// Memory on `device` of the calling thread's tensors, and of those that others placed for it; `None` where they lie in
    /// the process's own memory.
    fn device_memory(_device: &Self::Device) -> Option<DeviceMemory> {
        None
    }

    /// Runs `work` and returns the largest [`Self::device_memory`] during it. Slower than `work` alone: every buffer that
    /// an op takes is counted.
    fn peak_memory<T>(work: impl FnOnce() -> T) -> (T, Option<DeviceMemory>) {
        (work(), None)
    }
}
