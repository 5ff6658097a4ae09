//! From a checked checkpoint to a decoder on a device, one tensor at a time.
//!
//! Peak memory is the model as it is stored plus one dense tensor: each is read, converted or quantized,
//! moved to the device and dropped before the next. Only the projections of the layers are ever quantized;
//! embeddings, norms, biases and the output head stay in the compute dtype.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use half::{bf16, f16};
use tune_kernels::KernelBackend;
use tune_kernels::linear::FrozenWeight;
use tune_kernels::nf4::{Nf4Weight, Quantized};

use super::Error;
use super::decoder::Decoder;
use super::decoder_spec::DecoderSpec;
use super::dtype::{FloatDtype, burn_dtype};
use super::layers::{FrozenProjection, Layer, Layers, Order, Walk};
use super::parts::{LayerTensor, ProjectionSpec};
use super::rotations::Rotations;
use super::tensors::{self, Checked};
use crate::assets::WeightFiles;
use crate::quant;

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The tensor now loaded.
    pub tensor: &'a str,
    /// Tensors loaded, this one included.
    pub done: usize,
    /// Tensors in all.
    pub total: usize,
}

/// Loads a decoder: checks every tensor against `spec`, then reads them one by one.
///
/// With `quantization` the dense projections are quantized; a checkpoint that is already quantized is taken as it
/// is (see [`tensors::check`]). `progress` is called after each tensor.
///
/// # Errors
/// Tensors that do not fit `spec` (found before anything is allocated), a file that can no longer be read, a
/// number that is not finite or does not fit `dtype`.
pub fn load<B: KernelBackend>(
    weights: &WeightFiles,
    spec: &DecoderSpec,
    quantization: Option<quant::spec::Spec>,
    dtype: FloatDtype,
    device: &B::Device,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Decoder<B>, Error> {
    Loader::new(weights, spec, quantization, dtype, device, progress)?.decoder()
}

/// Loads a decoder part by part, without ever holding it whole.
pub struct Loader<'a, B: KernelBackend> {
    weights: &'a WeightFiles,
    spec: &'a DecoderSpec,
    checked: Checked,
    quantization: Option<quant::spec::Spec>,
    dtype: FloatDtype,
    device: &'a B::Device,
    progress: &'a mut dyn FnMut(Progress<'_>),
    done: usize,
    total: usize,
}

impl<'a, B: KernelBackend> Loader<'a, B> {
    /// Checks every tensor; reads none. Arguments and errors are those of [`load`].
    ///
    /// # Errors
    /// Tensors that do not fit `spec`.
    pub fn new(
        weights: &'a WeightFiles,
        spec: &'a DecoderSpec,
        quantization: Option<quant::spec::Spec>,
        dtype: FloatDtype,
        device: &'a B::Device,
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, Error> {
        let checked = tensors::check(spec, weights, quantization)?;
        // A checkpoint with quantized tensors is taken as it is, its dense projections included.
        let quantization = quantization.filter(|_| checked.quantized.is_empty());
        let total = tensors::expected(spec).len();
        Ok(Self { weights, spec, checked, quantization, dtype, device, progress, done: 0, total })
    }

    fn decoder(mut self) -> Result<Decoder<B>, Error> {
        let mut decoder = self.frame()?;
        let layers = (0..self.spec.layers.len()).map(|layer| self.layer(layer));
        decoder.layers = Layers::resident(layers.collect::<Result<_, _>>()?);
        Ok(decoder)
    }

    /// Everything but the layers: embeddings, final norm, output head.
    ///
    /// # Errors
    /// As [`load`].
    pub fn frame(&mut self) -> Result<Decoder<B>, Error> {
        let (spec, paths) = (self.spec, self.spec.paths);
        let weight = |path: &str| format!("{path}.weight");
        let table = [spec.vocab_size, spec.hidden_size];
        let embedding = self.dense(&weight(paths.embedding), table)?;
        let final_norm = self.dense(&weight(spec.final_norm.path), [spec.hidden_size])?;
        let head = match spec.tied {
            true => embedding.clone(),
            false => self.dense(&weight(paths.head), table)?,
        };
        let head_bias = match spec.head_bias {
            true => Some(self.dense(&format!("{}.bias", paths.head), [spec.vocab_size])?),
            false => None,
        };
        Ok(Decoder {
            spec: spec.clone(),
            dtype: self.dtype,
            device: self.device.clone(),
            embedding,
            layers: Layers::resident(Vec::new()),
            final_norm,
            head,
            head_bias,
            rotations: Rotations::new(),
        })
    }

    /// Some layers in some order, each read when the walk comes to it.
    pub fn walk(&mut self, order: Order) -> Walk<'_, B> {
        Walk::reading(order, |layer| self.layer(layer))
    }

    fn layer(&mut self, layer: usize) -> Result<Layer<B>, Error> {
        let spec = Arc::clone(&self.spec.layers[layer]);
        let (mut projections, mut norms, mut constants) = (Vec::new(), Vec::new(), Vec::new());
        for tensor in spec.tensors() {
            match tensor {
                LayerTensor::Norm(norm) => {
                    let name = format!("{}.weight", self.spec.path(layer, norm.path));
                    norms.push(self.dense(&name, [norm.width])?);
                }
                LayerTensor::Projection(projection) => {
                    let module = self.spec.path(layer, &projection.path);
                    projections.push(self.projection(&module, projection)?);
                }
                LayerTensor::Constant(constant) => {
                    let name = self.spec.path(layer, constant.name);
                    constants.push(self.dense_in(constant.dtype(self.dtype), &name, constant.matrix())?);
                }
            }
        }
        Ok(Layer::new(spec, projections, norms, constants))
    }

    fn projection(&mut self, module: &str, spec: &ProjectionSpec) -> Result<FrozenProjection<B>, Error> {
        let shape = spec.shape;
        let name = format!("{module}.weight");
        let weight = match (self.checked.quantized.get(&name), self.quantization.filter(|_| !spec.dense)) {
            (Some(stored), _) => {
                let quantized = stored.read(self.weights)?;
                self.packed(&name, quantized)?
            }
            (None, Some(spec)) => {
                let values = self.weights.read_floats::<f32>(&name)?;
                let quantized = quant::nf4::quantize(&values, shape, spec);
                drop(values);
                self.packed(&name, quantized)?
            }
            (None, None) => FrozenWeight::Dense(self.dense(&name, shape)?),
        };
        let bias = match spec.bias {
            true => Some(self.dense(&format!("{module}.bias"), [shape[0]])?),
            false => None,
        };
        Ok(FrozenProjection::new(weight, bias))
    }

    /// A 4-bit weight, moved to the device.
    fn packed(&mut self, name: &str, quantized: Quantized) -> Result<FrozenWeight<B>, Error> {
        let device = self.device;
        // Weights stay: each in a buffer of its own size, not in a page of a pool.
        let weight = B::memory_persistent_allocations(device, quantized, |quantized| {
            Nf4Weight::try_new(quantized, device)
        });
        let weight = weight
            .map_err(|error| quant::Error::FourBit { weight: name.to_owned(), message: error.to_string() })?;
        self.report(name);
        Ok(FrozenWeight::Nf4(weight))
    }

    /// A tensor in the compute dtype.
    fn dense<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Result<Tensor<B, D>, Error> {
        self.dense_in(self.dtype, name, shape)
    }

    /// A tensor in `dtype`.
    fn dense_in<const D: usize>(
        &mut self,
        dtype: FloatDtype,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, Error> {
        let data = match dtype {
            FloatDtype::F32 => TensorData::new(self.weights.read_floats::<f32>(name)?, shape),
            FloatDtype::Bf16 => TensorData::new(self.weights.read_floats::<bf16>(name)?, shape),
            FloatDtype::F16 => TensorData::new(self.weights.read_floats::<f16>(name)?, shape),
        };
        self.report(name);
        let (device, dtype) = (self.device, burn_dtype(dtype));
        let tensor = |data| Tensor::from_data(data, (device, dtype));
        Ok(B::memory_persistent_allocations(device, data, tensor))
    }

    fn report(&mut self, tensor: &str) {
        self.done += 1;
        (self.progress)(Progress { tensor, done: self.done, total: self.total });
    }
}
