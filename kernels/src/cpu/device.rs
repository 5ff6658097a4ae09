//! The CPU as a device.

use std::borrow::Cow;

use burn_flex::{Flex, FlexTensor, Layout};
use burn_tensor::{Bytes, DType, Int, Shape, Tensor, TensorData};

use super::{parallel, tensor, weights};
use crate::device::{DeviceOps, words};

impl DeviceOps for Flex {
    fn words(bytes: Cow<'_, [u8]>, device: &Self::Device) -> Tensor<Self, 1, Int> {
        match weights::placed(&bytes, 4) {
            Some(placed) => Tensor::from_primitive(frozen(placed, &[bytes.len().div_ceil(4)], DType::U32)),
            None => words(bytes, device),
        }
    }

    fn upload<const D: usize>(data: TensorData, dtype: DType, device: &Self::Device) -> Tensor<Self, D> {
        let data = data.convert_dtype(dtype);
        match weights::placed(data.as_bytes(), 1) {
            Some(placed) => tensor::from_flex(frozen(placed, &data.shape, dtype)),
            None => Tensor::from_data(data, (device, dtype)),
        }
    }

    fn on_workers<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        parallel::on_workers(work)
    }
}

fn frozen(bytes: Bytes, shape: &[usize], dtype: DType) -> FlexTensor {
    FlexTensor::new(bytes, Layout::contiguous(Shape::from(shape.to_vec())), dtype)
}
