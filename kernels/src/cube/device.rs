//! A GPU as a device.

use std::borrow::Cow;

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Int, Shape, Tensor, TensorData};
#[cfg(feature = "cuda")]
use cubecl_common::device::Device as _;

use super::tensor::{into_float, wrap};
use super::{passes, read, watch};
use crate::device::{DeviceMemory, DeviceOps, Fence, Parked, Reading, words};

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

    fn words(bytes: Cow<'_, [u8]>, device: &Self::Device) -> Tensor<Self, 1, Int> {
        let whole = bytes.len().is_multiple_of(4);
        match whole.then(|| copied::<R>(&bytes, [bytes.len() / 4], DType::U32, device)).flatten() {
            Some(words) => Tensor::from_primitive(words),
            None => words(bytes, device),
        }
    }

    fn upload<const D: usize>(data: TensorData, dtype: DType, device: &Self::Device) -> Tensor<Self, D> {
        let data = data.convert_dtype(dtype);
        match copied::<R>(data.as_bytes(), data.shape.clone(), dtype, device) {
            Some(tensor) => wrap(tensor),
            None => Tensor::from_data(data, (device, dtype)),
        }
    }

    const PLACES_BESIDE: bool = true;

    fn place_for_others() {
        watch::place_for_others();
    }

    fn fence(device: &Self::Device) -> Fence {
        // Made here, for what this thread has launched may wait in a queue of its own.
        let done = R::client(device).sync();
        Fence::new(move || cubecl::future::block_on(done).map_err(|error| error.to_string()))
    }

    fn begin_pass(device: &Self::Device, rows: usize) {
        passes::begin::<R>(device, rows);
    }

    fn device_memory(device: &Self::Device) -> Option<DeviceMemory> {
        watch::usage(&R::client(device))
    }

    fn peak_memory<W>(work: impl FnOnce() -> W) -> (W, Option<DeviceMemory>) {
        watch::watched(work)
    }
}

/// A tensor of these bytes, where our own copier brings them; a failure of the device counts as one of its threads.
#[cfg(feature = "cuda")]
fn copied<R: CubeRuntime>(
    bytes: &[u8],
    shape: impl Into<Shape>,
    dtype: DType,
    device: &R::CubeDevice,
) -> Option<CubeTensor<R>> {
    let client = R::client(device);
    let handle = crate::gpu::pinned::upload(&client, device.to_id().index_id.into(), bytes)?;
    let handle = handle.map_err(crate::fault::raise).ok()?;
    Some(CubeTensor::new_contiguous(client, device.clone(), shape.into(), handle, dtype))
}

/// Other runtimes have none.
#[cfg(not(feature = "cuda"))]
fn copied<R: CubeRuntime>(
    _bytes: &[u8],
    _shape: impl Into<Shape>,
    _dtype: DType,
    _device: &R::CubeDevice,
) -> Option<CubeTensor<R>> {
    None
}
