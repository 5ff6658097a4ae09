//! Tables of embeddings, whose rows are gathered as tokens need them: on the device, or off it, in the checkpoint's files,
//! which the system caches in host memory.

use std::sync::Arc;

use burn_tensor::{Int, Tensor, TensorData};
use half::{bf16, f16};
use tune_kernels::KernelBackend;

use super::Error;
use super::dtype::{FloatDtype, burn_dtype};
use super::random::Values;
use crate::assets::WeightFiles;

/// The table of token embeddings, `[vocab, hidden]`.
#[derive(Clone, Debug)]
pub(super) enum Table<B: KernelBackend> {
    /// On the device.
    Device(Tensor<B, 2>),
    /// Off it.
    Host(HostTable),
}

/// A table off the device.
#[derive(Clone, Debug)]
pub(super) struct HostTable {
    rows: Rows,
    /// Name of its tensor.
    name: String,
    /// Numbers of a row.
    width: usize,
}

#[derive(Clone, Debug)]
enum Rows {
    /// In the files of the checkpoint.
    Stored(Arc<WeightFiles>),
    /// Nowhere: a row is a stretch of these random numbers.
    Random(Arc<[f32]>),
}

/// Places in the random numbers where a row may begin.
const STARTS: usize = 1 << 16;

impl<B: KernelBackend> Table<B> {
    /// Rows of the table, `[ids, hidden]`.
    ///
    /// # Errors
    /// The table can no longer be read, or has no such row.
    pub(super) fn rows(
        &self,
        ids: &[u32],
        dtype: FloatDtype,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>, Error> {
        match self {
            Self::Device(table) => Ok(table.clone().select(0, integers(ids, device))),
            Self::Host(table) => table.rows(ids, dtype, device),
        }
    }

    /// The whole table, on the device.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub(super) fn whole(
        &self,
        rows: usize,
        dtype: FloatDtype,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>, Error> {
        match self {
            Self::Device(table) => Ok(table.clone()),
            Self::Host(table) => table.rows(&(0..rows as u32).collect::<Vec<_>>(), dtype, device),
        }
    }

    /// Bytes that it takes on the device.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Device(table) => table.shape().num_elements() * table.dtype().size(),
            Self::Host(_) => 0,
        }
    }
}

impl HostTable {
    /// The tensor `name` of a checkpoint, `width` numbers a row.
    ///
    /// # Errors
    /// The files cannot be opened.
    pub(super) fn stored(weights: &WeightFiles, name: String, width: usize) -> Result<Self, Error> {
        Ok(Self { rows: Rows::Stored(Arc::new(WeightFiles::open(weights.folder())?)), name, width })
    }

    /// Random numbers within `size` of 0.
    pub(super) fn random(values: &mut Values, width: usize, size: f32) -> Self {
        let numbers = (0..STARTS + width).map(|_| values.float(0.0, size)).collect();
        Self { rows: Rows::Random(numbers), name: String::new(), width }
    }

    /// Rows of the table, `[ids, width]`, on a device.
    ///
    /// # Errors
    /// The table can no longer be read, or has no such row.
    pub(super) fn rows<B: KernelBackend>(
        &self,
        ids: &[u32],
        dtype: FloatDtype,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>, Error> {
        let shape = [ids.len(), self.width];
        let data = match dtype {
            FloatDtype::F32 => TensorData::new(self.numbers::<f32>(ids)?, shape),
            FloatDtype::Bf16 => TensorData::new(self.numbers::<bf16>(ids)?, shape),
            FloatDtype::F16 => TensorData::new(self.numbers::<f16>(ids)?, shape),
        };
        Ok(Tensor::from_data(data, (device, burn_dtype(dtype))))
    }

    fn numbers<T: crate::assets::Float>(&self, ids: &[u32]) -> Result<Vec<T>, Error> {
        let numbers = match &self.rows {
            Rows::Stored(weights) => return Ok(weights.read_rows(&self.name, ids)?),
            Rows::Random(numbers) => numbers,
        };
        let row = |id: &u32| {
            let start = (*id as usize).wrapping_mul(0x9e37_79b1) % STARTS;
            numbers[start..start + self.width].iter().map(|number| T::from_f32(*number))
        };
        Ok(ids.iter().flat_map(row).collect())
    }
}

/// Indices of rows, on a device. They were checked to be far below 2^31.
pub(super) fn integers<B: KernelBackend>(values: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}
