//! A GPU as a device.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::Tensor;

use super::tensor::{into_float, wrap};
use super::{passes, read, watch};
use crate::device::{DeviceMemory, DeviceOps, Fence, Parked, Reading};

impl<R, F, I, T> DeviceOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn read_later(numbers: Tensor<Self, 1>) -> Reading {
        read::later(into_float(numbers))
    }

    fn park(tensor: Tensor<Self, 2>) -> Parked<Self> {
        let fetch = read::parked(into_float(tensor));
        Parked::new(move || fetch().map(wrap))
    }

    const PLACES_BESIDE: bool = true;

    fn fence(device: &Self::Device) -> Fence {
        // Made here, for what this thread has launched may wait in a queue of its own.
        let done = R::client(device).sync();
        Fence::new(move || cubecl::future::block_on(done).map_err(|error| error.to_string()))
    }

    fn begin_pass(device: &Self::Device, rows: usize) {
        passes::begin::<R>(device, rows);
    }

    fn device_memory(device: &Self::Device) -> Option<DeviceMemory> {
        crate::gpu::usage::<R>(device)
    }

    fn peak_memory<W>(work: impl FnOnce() -> W) -> (W, Option<DeviceMemory>) {
        watch::watched(work)
    }
}
