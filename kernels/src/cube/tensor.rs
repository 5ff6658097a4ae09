//! burn's tensors as kernels see them: contiguous buffers, and how many units work on them.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Int, Shape, Tensor, TensorMetadata, TensorPrimitive};
use cubecl::prelude::*;

use crate::fault;

/// Units of a cube where every unit works for itself.
pub(crate) const UNITS: u32 = 256;

/// Cubes along the first axis of a grid at most; every API allows 65535.
const ROW_OF_CUBES: u32 = 32_768;

/// The buffer behind `tensor`, row-major and without gaps.
pub(crate) fn float<R, F, I, T, const D: usize>(tensor: &Tensor<CubeBackend<R, F, I, T>, D>) -> CubeTensor<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    into_contiguous(tensor.clone().into_primitive().tensor())
}

/// The buffer behind an owned `tensor`, row-major and without gaps.
pub(crate) fn into_float<R, F, I, T, const D: usize>(
    tensor: Tensor<CubeBackend<R, F, I, T>, D>,
) -> CubeTensor<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    into_contiguous(tensor.into_primitive().tensor())
}

/// The buffer of an integer tensor.
pub(crate) fn int<R, F, I, T, const D: usize>(
    tensor: &Tensor<CubeBackend<R, F, I, T>, D, Int>,
) -> CubeTensor<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    into_contiguous(tensor.clone().into_primitive())
}

/// `tensor` as burn's.
pub(crate) fn wrap<R, F, I, T, const D: usize>(tensor: CubeTensor<R>) -> Tensor<CubeBackend<R, F, I, T>, D>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// A new buffer beside `like`, its contents undefined.
///
/// # Panics
/// If the device failed.
pub(crate) fn empty<R: CubeRuntime>(like: &CubeTensor<R>, shape: &[usize], dtype: DType) -> CubeTensor<R> {
    fault::check();
    let elements: usize = shape.iter().product();
    let handle = like.client.empty(elements * dtype.size());
    super::watch::look(&like.client);
    let shape = Shape::from(shape.to_vec());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// A new buffer like `like`, its contents undefined.
pub(crate) fn empty_like<R: CubeRuntime>(like: &CubeTensor<R>) -> CubeTensor<R> {
    empty(like, &dims(like), like.dtype)
}

/// The shape.
pub(crate) fn dims<R: CubeRuntime>(tensor: &CubeTensor<R>) -> Vec<usize> {
    tensor.shape().to_vec()
}

/// Number of elements.
///
/// # Panics
/// If there are more than kernels count: 2³² − 1.
pub(crate) fn elements<R: CubeRuntime>(tensor: &CubeTensor<R>) -> usize {
    let count = tensor.shape().num_elements();
    assert!(u32::try_from(count).is_ok(), "a tensor of {count} elements: GPU kernels count in 32 bits");
    count
}

/// The buffer for a result in place of `tensor`: its own if this is the only holder, else a new one.
pub(crate) fn in_place<R: CubeRuntime>(tensor: &CubeTensor<R>) -> CubeTensor<R> {
    if tensor.can_mut() { tensor.clone() } else { empty_like(tensor) }
}

/// A grid of one unit for each of `count` elements.
pub(crate) fn units(count: usize) -> (CubeCount, CubeDim) {
    (cubes((count as u32).div_ceil(UNITS)), CubeDim::new_1d(UNITS))
}

/// A grid with a column of cubes for each of `things`, the largest of which has `most` elements: units of a column go
/// through their thing in as many rounds as it takes.
pub(crate) fn columns(most: u32, things: usize) -> (CubeCount, CubeDim) {
    let cubes = most.div_ceil(UNITS).clamp(1, ROW_OF_CUBES);
    (CubeCount::Static(cubes, things as u32, 1), CubeDim::new_1d(UNITS))
}

/// A grid of one cube for each of `rows` rows of `width` elements, and the units of a cube. The grid may be larger than
/// `rows`.
pub(crate) fn rows(rows: usize, width: usize) -> (CubeCount, u32) {
    let units = (width as u32).div_ceil(4).next_power_of_two().clamp(32, UNITS);
    (cubes(rows as u32), units)
}

/// At least `count` cubes.
pub(crate) fn cubes(count: u32) -> CubeCount {
    if count <= ROW_OF_CUBES {
        CubeCount::Static(count.max(1), 1, 1)
    } else {
        CubeCount::Static(ROW_OF_CUBES, count.div_ceil(ROW_OF_CUBES), 1)
    }
}

/// How many things of `buffers` buffers each one launch takes, beside two more buffers: what the device binds at once, and
/// no more than a kernel should have code for.
pub(crate) fn many<R: CubeRuntime>(client: &ComputeClient<R>, buffers: usize) -> usize {
    let bound = client.properties().hardware.max_bindings as usize;
    (bound.saturating_sub(2) / buffers).clamp(1, 28)
}

/// A tensor as a kernel's argument.
pub(crate) fn array<R: CubeRuntime>(tensor: &CubeTensor<R>) -> ArrayArg<R> {
    // SAFETY: the tensor is contiguous, so its buffer holds as many elements as its shape has.
    unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), elements(tensor)) }
}

/// A tensor as a kernel's argument that is read or written by vectors, whose size divides the tensor's elements.
pub(crate) fn array_of<R: CubeRuntime>(tensor: &CubeTensor<R>, vector_size: usize) -> ArrayArg<R> {
    // SAFETY: as in [`array`].
    unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), elements(tensor) / vector_size) }
}

/// The largest vector of `dtype` that the device loads at once and that divides all of `lengths`.
pub(crate) fn vector_size<R: CubeRuntime>(
    client: &ComputeClient<R>,
    dtype: DType,
    lengths: &[usize],
) -> usize {
    let fits = |size: &usize| lengths.iter().all(|length| length.is_multiple_of(*size));
    client.io_optimized_vector_sizes(dtype.size()).filter(fits).max().unwrap_or(1)
}

/// Whether what a plane wrote to shared memory before it was synchronized is seen after: CUDA alone promises it.
pub(crate) fn syncs_planes<R: CubeRuntime>(client: &ComputeClient<R>) -> bool {
    R::name(client) == "cuda"
}
