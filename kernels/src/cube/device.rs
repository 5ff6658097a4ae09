//! A GPU as a device.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::Tensor;

use super::tensor::into_float;
use super::{read, watch};
use crate::device::{DeviceMemory, DeviceOps, Reading};

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

    fn device_memory(device: &Self::Device) -> Option<DeviceMemory> {
        crate::gpu::usage::<R>(device)
    }

    fn peak_memory<W>(work: impl FnOnce() -> W) -> (W, Option<DeviceMemory>) {
        watch::watched(work)
    }
}
