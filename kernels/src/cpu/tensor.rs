//! In and out of burn-flex tensors.

use std::borrow::Cow;

use burn_flex::{Flex, FlexTensor, Layout};
use burn_tensor::{Bytes, DType, Int, Shape, Tensor, TensorPrimitive};

use super::parallel;
use super::pool::{self, Buffer};
use super::scalar::{Scalar, widen, with_float};

/// The primitive of a float tensor, contiguous from the first byte of its buffer on.
pub(crate) fn primitive<const D: usize>(tensor: Tensor<Flex, D>) -> FlexTensor {
    let tensor = tensor.into_primitive().tensor();
    if is_whole(&tensor) { tensor } else { tensor.to_contiguous() }
}

/// Whether a tensor is its whole buffer, in order.
fn is_whole(tensor: &FlexTensor) -> bool {
    let length = tensor.layout().num_elements() * tensor.dtype().size();
    tensor.is_contiguous() && tensor.layout().start_offset() == 0 && tensor.bytes().len() == length
}

/// The primitive of a float tensor, contiguous from the first byte of its buffer on, behind which more may follow: the
/// filled part of a cache is not copied.
pub(crate) fn leading<const D: usize>(tensor: Tensor<Flex, D>) -> FlexTensor {
    let tensor = tensor.into_primitive().tensor();
    match tensor.is_contiguous() && tensor.layout().start_offset() == 0 {
        true => tensor,
        false => tensor.to_contiguous(),
    }
}

/// A tensor around a vector.
pub(crate) fn from_vec<T: Scalar, const D: usize>(values: Vec<T>, shape: [usize; D]) -> Tensor<Flex, D> {
    let layout = Layout::contiguous(Shape::from(shape.to_vec()));
    from_flex(FlexTensor::new(Bytes::from_elems(values), layout, T::DTYPE))
}

/// A tensor around a buffer of the pool.
pub(crate) fn from_buffer<T: Scalar, const D: usize>(
    values: Buffer<T>,
    shape: [usize; D],
) -> Tensor<Flex, D> {
    let layout = Layout::contiguous(Shape::from(shape.to_vec()));
    from_flex(FlexTensor::new(values.into_bytes(), layout, T::DTYPE))
}

/// A contiguous primitive, still the only owner of its storage if it was: what an op may write into.
pub(crate) fn owned<const D: usize>(tensor: Tensor<Flex, D>) -> FlexTensor {
    let tensor = tensor.into_primitive().tensor();
    match (is_whole(&tensor), tensor.is_unique()) {
        (true, true) => tensor,
        (true, false) => copied(&tensor),
        (false, _) => tensor.to_contiguous(),
    }
}

/// A copy of a contiguous primitive in memory of the pool.
fn copied(tensor: &FlexTensor) -> FlexTensor {
    let mut bytes = pool::take::<u8>(tensor.bytes().len());
    bytes.copy_from_slice(tensor.bytes());
    FlexTensor::new(bytes.into_bytes(), tensor.layout().clone(), tensor.dtype())
}

/// A tensor around its primitive.
pub(crate) fn from_flex<const D: usize>(tensor: FlexTensor) -> Tensor<Flex, D> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// All values in f32: borrowed if they already are.
pub(crate) fn floats(tensor: &FlexTensor) -> Cow<'_, [f32]> {
    with_float!(tensor.dtype(), T => {
        let values = tensor.storage::<T>();
        match T::as_f32(values) {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(widened(values)),
        }
    })
}

/// A slice converted to f32, in parallel when long.
pub(crate) fn widened<T: Scalar>(values: &[T]) -> Vec<f32> {
    const TASK: usize = 1 << 15;
    let mut wide = vec![0.0f32; values.len()];
    let tasks = wide.chunks_mut(TASK).zip(values.chunks(TASK)).collect();
    parallel::for_each(tasks, values.len(), |(wide, values)| widen(values, wide));
    wide
}

/// The values of an integer tensor (ids, positions, targets).
///
/// # Panics
/// On a dtype that is not an integer of 32 or 64 bits.
pub(crate) fn integers(tensor: &Tensor<Flex, 1, Int>) -> Vec<i64> {
    let tensor = tensor.clone().into_primitive().to_contiguous();
    let dtype = tensor.dtype();
    assert!(
        matches!(dtype, DType::I32 | DType::U32 | DType::I64 | DType::U64),
        "integer tensors are read as 32 or 64 bits, not {dtype:?}"
    );
    match dtype {
        DType::I32 => tensor.storage::<i32>().iter().map(|value| i64::from(*value)).collect(),
        DType::U32 => tensor.storage::<u32>().iter().map(|value| i64::from(*value)).collect(),
        DType::I64 => tensor.storage::<i64>().to_vec(),
        // Beyond i64 no id, position or target is meant; it becomes one that the range checks refuse.
        _ => tensor.storage::<u64>().iter().map(|value| i64::try_from(*value).unwrap_or(i64::MAX)).collect(),
    }
}
