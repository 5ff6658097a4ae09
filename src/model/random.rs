//! A decoder with random weights, made where it will be used: for benches, which need a shape and no files.
//!
//! The codes of quantized weights are random bytes. Values are small enough that activations and losses stay finite.

use std::sync::Arc;

use burn_tensor::{Tensor, TensorData};
use half::{bf16, f16};
use tune_kernels::KernelBackend;
use tune_kernels::linear::FrozenWeight;
use tune_kernels::nf4::{self, Absmax, Nf4Weight, Quantized};

use super::decoder::Decoder;
use super::decoder_spec::DecoderSpec;
use super::dtype::{FloatDtype, burn_dtype};
use super::layers::norm::NormTensors;
use super::layers::{FrozenProjection, Layer, Layers};
use super::parts::{LayerSpec, LayerTensor, NormSpec, ProjectionSpec};
use super::per_layer::PerLayer;
use super::rotations::Rotations;
use super::table::{HostTable, Table};
use crate::quant;

/// A decoder of `spec` whose projections are stored as `quantization` says, and its token embeddings off the device where
/// `host_embeddings` and its output head allow it.
pub fn decoder<B: KernelBackend>(
    spec: &DecoderSpec,
    quantization: Option<quant::spec::Spec>,
    dtype: FloatDtype,
    device: &B::Device,
    host_embeddings: bool,
) -> Decoder<B> {
    Maker { spec, quantization, dtype, device, values: Values::new() }.decoder(host_embeddings)
}

/// A stream of random numbers for weights.
#[derive(Debug)]
pub struct Values {
    /// Of a xorshift generator; never zero.
    state: u64,
}

impl Values {
    /// The same stream each time.
    #[expect(clippy::new_without_default, reason = "a stream has a place where it stands")]
    pub fn new() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15 }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// Within `size` of `center`.
    pub fn float(&mut self, center: f32, size: f32) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0;
        center + unit * size
    }

    /// A 4-bit weight with values of about `1 / sqrt(in)`.
    pub fn quantized(&mut self, shape: [usize; 2], spec: quant::spec::Spec) -> Quantized {
        let quant::spec::Spec::Nf4 { block_size, double_quant } = spec;
        let size = 1.0 / (shape[1] as f32).sqrt();
        let weights = shape[0] * shape[1];
        let mut codes = vec![0_u8; weights.div_ceil(2)];
        for bytes in codes.chunks_mut(8) {
            bytes.copy_from_slice(&self.next().to_le_bytes()[..bytes.len()]);
        }
        let blocks = weights.div_ceil(block_size);
        let absmax = match double_quant {
            true => Absmax::Double {
                codes: (0..blocks).map(|_| self.next() as u8).collect(),
                nested_absmax: vec![0.5 * size; blocks.div_ceil(nf4::NESTED_BLOCK_SIZE)],
                nested_map: Box::new(nf4::dynamic_map()),
                offset: size,
                nested_block_size: nf4::NESTED_BLOCK_SIZE,
            },
            false => Absmax::F32(vec![size; blocks]),
        };
        Quantized { shape, block_size, codebook: nf4::CODEBOOK, codes, absmax }
    }
}

struct Maker<'a, B: KernelBackend> {
    spec: &'a DecoderSpec,
    quantization: Option<quant::spec::Spec>,
    dtype: FloatDtype,
    device: &'a B::Device,
    values: Values,
}

impl<B: KernelBackend> Maker<'_, B> {
    fn decoder(mut self, host_embeddings: bool) -> Decoder<B> {
        let spec = self.spec;
        let shape = [spec.vocab_size, spec.hidden_size];
        let size = 1.0 / (spec.hidden_size as f32).sqrt();
        let head = self.dense(shape, 0.0, size);
        let embedding = match (spec.tied, host_embeddings) {
            (true, _) => Table::Device(head.clone()),
            (false, true) => Table::Host(HostTable::random(&mut self.values, spec.hidden_size, size)),
            (false, false) => Table::Device(self.dense(shape, 0.0, size)),
        };
        let layers = Layers::resident(spec.layers.iter().map(|layer| self.layer(layer)).collect());
        Decoder {
            spec: spec.clone(),
            dtype: self.dtype,
            device: self.device.clone(),
            embedding,
            per_layer: spec.per_layer.as_ref().map(|own| PerLayer {
                spec: own.clone(),
                table: HostTable::random(&mut self.values, own.numbers(), size),
                projection: self.dense([own.numbers(), spec.hidden_size], 0.0, size),
                norm: self.norm(&own.norm),
            }),
            layers,
            final_norm: self.norm(&spec.final_norm),
            head,
            head_bias: spec.head_bias.then(|| self.dense([spec.vocab_size], 0.0, 0.1)),
            rotations: Rotations::new(),
        }
    }

    fn layer(&mut self, spec: &Arc<LayerSpec>) -> Layer<B> {
        let (mut projections, mut norms, mut constants) = (Vec::new(), Vec::new(), Vec::new());
        for tensor in spec.tensors() {
            match tensor {
                LayerTensor::Norm(norm) => norms.push(self.norm(norm)),
                LayerTensor::Projection(projection) => projections.push(self.projection(projection).into()),
                LayerTensor::Constant(constant) => {
                    let values = self.dense(constant.matrix(), 0.0, 0.5);
                    constants.push(values.cast(burn_dtype(constant.dtype(self.dtype))));
                }
            }
        }
        Layer::new(Arc::clone(spec), projections, norms, constants)
    }

    fn norm(&mut self, spec: &NormSpec) -> NormTensors<B> {
        let weight = self.dense([spec.width], 1.0, 0.1);
        let bias = spec.kind.has_bias().then(|| self.dense([spec.width], 0.0, 0.1));
        NormTensors { weight, bias }
    }

    fn projection(&mut self, spec: &ProjectionSpec) -> FrozenProjection<B> {
        let shape = spec.shape;
        let weight = match spec.blocks(self.quantization) {
            Some(spec) => FrozenWeight::Nf4(Nf4Weight::new(self.values.quantized(shape, spec), self.device)),
            None => FrozenWeight::Dense(self.dense(shape, 0.0, 1.0 / (shape[1] as f32).sqrt())),
        };
        let bias = spec.bias.then(|| self.dense([shape[0]], 0.0, 0.1));
        FrozenProjection::new(weight, bias)
    }

    /// Values within `size` of `center`.
    fn dense<const D: usize>(&mut self, shape: [usize; D], center: f32, size: f32) -> Tensor<B, D> {
        let count: usize = shape.iter().product();
        let dtype = self.dtype;
        let mut value = || self.values.float(center, size);
        let data = match dtype {
            FloatDtype::F32 => TensorData::new((0..count).map(|_| value()).collect::<Vec<f32>>(), shape),
            FloatDtype::Bf16 => {
                TensorData::new((0..count).map(|_| bf16::from_f32(value())).collect::<Vec<_>>(), shape)
            }
            FloatDtype::F16 => {
                TensorData::new((0..count).map(|_| f16::from_f32(value())).collect::<Vec<_>>(), shape)
            }
        };
        Tensor::from_data(data, (self.device, burn_dtype(self.dtype)))
    }
}
