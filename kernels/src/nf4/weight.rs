//! An NF4 weight on a device: the host's bytes, unchanged, in tensors a kernel can read.

use burn_tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::quantized::{Absmax, Error, Quantized};
use crate::device::DeviceOps;

/// NF4 weights on a backend.
pub trait Nf4Ops: Backend {
    /// [`Nf4Weight::dequantize`]: f32 `[out, in]`.
    fn nf4_dequantize(weight: &Nf4Weight<Self>) -> Tensor<Self, 2>;
}

/// A frozen NF4 matrix `[out, in]` on a device. Cloning shares the storage.
#[derive(Clone, Debug)]
pub struct Nf4Weight<B: Backend> {
    pub(crate) shape: [usize; 2],
    pub(crate) block_size: usize,
    pub(crate) codebook: [f32; 16],
    /// The host's bytes as little-endian u32 words, the last padded with zeros.
    pub(crate) codes: Tensor<B, 1, Int>,
    pub(crate) absmax: DeviceAbsmax<B>,
    bytes: usize,
}

/// Scales on the device; double quantization stays packed.
#[derive(Clone, Debug)]
pub(crate) enum DeviceAbsmax<B: Backend> {
    F32(Tensor<B, 1>),
    Double {
        /// Bytes as u32 words, like the weight's codes.
        codes: Tensor<B, 1, Int>,
        nested_absmax: Tensor<B, 1>,
        nested_map: Tensor<B, 1>,
        offset: f32,
        nested_block_size: usize,
    },
}

impl<B: DeviceOps> Nf4Weight<B> {
    /// Moves a quantized matrix to `device`.
    ///
    /// # Errors
    /// If the parts do not fit each other ([`Quantized::validate`]).
    pub fn try_new(quantized: Quantized, device: &B::Device) -> Result<Self, Error> {
        quantized.validate()?;
        let bytes = quantized.bytes();
        let Quantized { shape, block_size, codebook, codes, absmax } = quantized;
        let codes = B::words(codes.into(), device);
        Ok(Self::placed(shape, block_size, codebook, codes, absmax, bytes, device))
    }

    /// [`Self::try_new`] of a matrix that stays on the host too.
    ///
    /// # Errors
    /// As [`Self::try_new`].
    pub fn copied(quantized: &Quantized, device: &B::Device) -> Result<Self, Error> {
        quantized.validate()?;
        let Quantized { shape, block_size, codebook, codes, absmax } = quantized;
        let codes = B::words(codes.into(), device);
        Ok(Self::placed(*shape, *block_size, *codebook, codes, absmax.clone(), quantized.bytes(), device))
    }

    fn placed(
        shape: [usize; 2],
        block_size: usize,
        codebook: [f32; 16],
        codes: Tensor<B, 1, Int>,
        absmax: Absmax,
        bytes: usize,
        device: &B::Device,
    ) -> Self {
        let absmax = match absmax {
            Absmax::F32(values) => DeviceAbsmax::F32(floats(values, device)),
            Absmax::Double { codes, nested_absmax, nested_map, offset, nested_block_size } => {
                DeviceAbsmax::Double {
                    codes: B::words(codes.into(), device),
                    nested_absmax: floats(nested_absmax, device),
                    nested_map: floats(nested_map.to_vec(), device),
                    offset,
                    nested_block_size,
                }
            }
        };
        Self { shape, block_size, codebook, codes, absmax, bytes }
    }

    /// Moves a quantized matrix to `device`.
    ///
    /// # Panics
    /// If the parts do not fit each other; use [`Self::try_new`] for data from a file.
    pub fn new(quantized: Quantized, device: &B::Device) -> Self {
        let fits = quantized.validate();
        assert!(fits.is_ok(), "NF4 weight: {fits:?}");
        match Self::try_new(quantized, device) {
            Ok(weight) => weight,
            Err(_) => unreachable!("validated above"),
        }
    }
}

impl<B: Backend> Nf4Weight<B> {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Weights per absmax.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Bytes of codes, scales and level tables.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<B: Nf4Ops> Nf4Weight<B> {
    /// The weights as a dense f32 tensor `[out, in]`; for export and tests, never inside a training step.
    pub fn dequantize(&self) -> Tensor<B, 2> {
        B::nf4_dequantize(self)
    }
}

fn floats<B: Backend>(values: Vec<f32>, device: &B::Device) -> Tensor<B, 1> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}
