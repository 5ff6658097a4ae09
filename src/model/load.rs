//! From a checked checkpoint to a decoder on a device, one tensor at a time.
//!
//! Peak memory is the model as it is stored plus one dense tensor, and on a device with memory of its own one layer:
//! each tensor is read, converted or quantized, and dropped before the next; layers are moved to the device one by one.
//! Only the projections of the layers are ever quantized; embeddings, norms, biases and the output head stay in the
//! compute dtype.

use std::path::Path;
use std::sync::Arc;

use burn_tensor::{Tensor, TensorData};
use half::{bf16, f16};
use tune_kernels::KernelBackend;
use tune_kernels::nf4::Quantized;

use super::Error;
use super::decoder::Decoder;
use super::decoder_spec::DecoderSpec;
use super::dtype::FloatDtype;
use super::fetch::{Fetcher, Home};
use super::layers::{Layer, Layers, Order, Walk};
use super::parts::{LayerSpec, LayerTensor, NormSpec, PerLayerSpec, ProjectionSpec};
use super::per_layer::PerLayer;
use super::rotations::Rotations;
use super::stored::{self, Squares, StoredLayer, StoredNorm, StoredProjection, StoredWeight};
use super::table::{HostTable, Table};
use super::tensors::{self, Checked};
use crate::adapter::projection::Slot;
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
    load_as(weights, spec, quantization, dtype, device, Layout::default(), progress)
}

/// What of a decoder lies elsewhere than on the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout<'a> {
    /// Whether the table of token embeddings stays in the checkpoint's files. One that is the output head too does not.
    pub host_embeddings: bool,
    /// The layers that are fetched for each use.
    pub streaming: Option<Streaming<'a>>,
}

/// Layers that are fetched for each use.
#[derive(Clone, Copy, Debug)]
pub struct Streaming<'a> {
    /// Where they wait.
    pub home: Home,
    /// How many layers are held all the same: those next to the output head.
    pub resident_layers: usize,
    /// Room for fetched layers.
    pub slots: usize,
    /// A folder with the same weights in 4 bits, where the original ones would have to be quantized at every reading.
    pub packed: Option<&'a Path>,
}

/// [`load`], with some weights left where they lie.
///
/// # Errors
/// As [`load`], and for the packed folder alike; the system starts no thread.
pub fn load_as<B: KernelBackend>(
    weights: &WeightFiles,
    spec: &DecoderSpec,
    quantization: Option<quant::spec::Spec>,
    dtype: FloatDtype,
    device: &B::Device,
    layout: Layout<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Decoder<B>, Error> {
    let mut loader = Loader::<B>::new(weights, spec, quantization, dtype, device, progress)?;
    let mut decoder = loader.frame_as(layout.host_embeddings)?;
    let layers = spec.layers.len();
    let Some(streaming) = layout.streaming else {
        let resident = (0..layers).map(|layer| loader.layer(layer));
        decoder.layers = Layers::resident(resident.collect::<Result<_, _>>()?);
        return Ok(decoder);
    };
    let streamed = layers - streaming.resident_layers.min(layers);
    let waiting = match streaming.home {
        Home::Host => (0..streamed).map(|layer| loader.stored(layer)).collect::<Result<_, _>>()?,
        Home::Disk => Vec::new(),
    };
    let resident = (streamed..layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?;
    let folder = streaming.packed.unwrap_or(weights.folder());
    let shelf = Shelf::open(folder, spec, quantization, dtype)?;
    let fetcher = match streaming.home {
        Home::Host => Fetcher::memory(waiting, &shelf, device)?,
        Home::Disk => Fetcher::files(shelf, device)?,
    };
    let fetcher = fetcher.by_use(spec);
    let bytes = spec.layers.iter().take(streamed).map(|layer| layer.weights(quantization, dtype).total());
    decoder.layers = Layers::streaming(fetcher, streaming.slots, streamed, bytes.sum(), resident);
    Ok(decoder)
}

/// The checked weights of a decoder on disk, from which layers are read one by one and without a device.
#[derive(Debug)]
pub(super) struct Shelf {
    weights: WeightFiles,
    spec: DecoderSpec,
    checked: Checked,
    quantization: Option<quant::spec::Spec>,
    dtype: FloatDtype,
}

impl Shelf {
    /// Of the weights in a folder, which are checked and not read.
    ///
    /// # Errors
    /// As [`load`].
    pub(super) fn open(
        folder: &Path,
        spec: &DecoderSpec,
        quantization: Option<quant::spec::Spec>,
        dtype: FloatDtype,
    ) -> Result<Self, Error> {
        let weights = WeightFiles::open(folder)?;
        let checked = tensors::check(spec, &weights, quantization)?;
        let quantization = checked.quantization_of_dense(quantization);
        Ok(Self { weights, spec: spec.clone(), checked, quantization, dtype })
    }

    /// The compute dtype.
    pub(super) fn dtype(&self) -> FloatDtype {
        self.dtype
    }

    /// Room for the sums of squares of every layer's projections.
    pub(super) fn squares<B: KernelBackend>(&self) -> Vec<Squares<B>> {
        let of = |layer: &Arc<LayerSpec>| layer.projections().map(|_| Arc::default()).collect();
        self.spec.layers.iter().map(of).collect()
    }

    /// Reads a layer, with or without its experts.
    ///
    /// # Errors
    /// A file that can no longer be read, a number that is not finite or does not fit the dtype.
    pub(super) fn layer(&self, layer: usize, with_experts: bool) -> Result<StoredLayer, Error> {
        self.reader(&mut |_| {}).layer(layer, with_experts)
    }

    /// Reads the projection of a layer in `slot`.
    ///
    /// # Errors
    /// As [`Self::layer`].
    pub(super) fn projection(&self, layer: usize, slot: Slot) -> Result<StoredProjection, Error> {
        let found = self.spec.layers[layer].projections().find(|projection| projection.slot == slot);
        let projection =
            found.ok_or_else(|| Error::LayerReader { message: format!("there is no slot {slot}") })?;
        self.reader(&mut |_| {}).projection(&self.spec.path(layer, &projection.path), projection)
    }

    fn reader<'a>(&'a self, report: &'a mut dyn FnMut(&str)) -> Reader<'a> {
        let Self { weights, spec, checked, quantization, dtype } = self;
        Reader { weights, spec, checked, quantization: *quantization, dtype: *dtype, report }
    }
}

/// Reads tensors into host memory.
struct Reader<'a> {
    weights: &'a WeightFiles,
    spec: &'a DecoderSpec,
    checked: &'a Checked,
    quantization: Option<quant::spec::Spec>,
    dtype: FloatDtype,
    /// Called with the name of each tensor that was read.
    report: &'a mut dyn FnMut(&str),
}

impl Reader<'_> {
    fn layer(&mut self, layer: usize, with_experts: bool) -> Result<StoredLayer, Error> {
        let spec = Arc::clone(&self.spec.layers[layer]);
        let (mut projections, mut norms, mut constants) = (Vec::new(), Vec::new(), Vec::new());
        for tensor in spec.tensors() {
            match tensor {
                LayerTensor::Norm(norm) => {
                    let path = self.spec.path(layer, norm.path);
                    norms.push(self.norm(&path, norm)?);
                }
                LayerTensor::Projection(projection) if projection.role.is_routed() && !with_experts => {
                    projections.push(None);
                }
                LayerTensor::Projection(projection) => {
                    let module = self.spec.path(layer, &projection.path);
                    projections.push(Some(self.projection(&module, projection)?));
                }
                LayerTensor::Constant(constant) => {
                    let name = self.spec.path(layer, constant.name);
                    let dtype = constant.dtype(self.dtype);
                    constants.push((self.dense_in(dtype, &name, &constant.matrix())?, dtype));
                }
            }
        }
        Ok(StoredLayer { spec, projections, norms, constants })
    }

    fn norm(&mut self, path: &str, norm: &NormSpec) -> Result<StoredNorm, Error> {
        let weight = self.dense(&format!("{path}.weight"), &[norm.width])?;
        let bias = match norm.kind.has_bias() {
            true => Some(self.dense(&format!("{path}.bias"), &[norm.width])?),
            false => None,
        };
        Ok(StoredNorm { weight, bias })
    }

    fn projection(&mut self, module: &str, spec: &ProjectionSpec) -> Result<StoredProjection, Error> {
        let shape = spec.shape;
        let name = format!("{module}.weight");
        let weight = match (self.checked.quantized.get(&name), self.quantization.filter(|_| !spec.dense)) {
            (Some(stored), _) => self.four_bit(name, stored.read(self.weights)?),
            (None, Some(spec)) => {
                let values = self.weights.read_floats::<f32>(&name)?;
                let quantized = quant::nf4::quantize(&values, shape, spec);
                drop(values);
                self.four_bit(name, quantized)
            }
            (None, None) => StoredWeight::Dense(self.dense(&name, &shape)?),
        };
        let bias = match spec.bias {
            true => Some(self.dense(&format!("{module}.bias"), &[shape[0]])?),
            false => None,
        };
        Ok(StoredProjection { weight, bias })
    }

    fn four_bit(&mut self, name: String, quantized: Quantized) -> StoredWeight {
        (self.report)(&name);
        StoredWeight::FourBit(name, Arc::new(quantized))
    }

    /// A tensor in the compute dtype.
    fn dense(&mut self, name: &str, shape: &[usize]) -> Result<TensorData, Error> {
        self.dense_in(self.dtype, name, shape)
    }

    /// A tensor in `dtype`.
    fn dense_in(&mut self, dtype: FloatDtype, name: &str, shape: &[usize]) -> Result<TensorData, Error> {
        let data = match dtype {
            FloatDtype::F32 => TensorData::new(self.weights.read_floats::<f32>(name)?, shape),
            FloatDtype::Bf16 => TensorData::new(self.weights.read_floats::<bf16>(name)?, shape),
            FloatDtype::F16 => TensorData::new(self.weights.read_floats::<f16>(name)?, shape),
        };
        (self.report)(name);
        Ok(data)
    }
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
        let quantization = checked.quantization_of_dense(quantization);
        let total = tensors::expected(spec).len();
        Ok(Self { weights, spec, checked, quantization, dtype, device, progress, done: 0, total })
    }

    /// Everything but the layers: embeddings, final norm, output head.
    ///
    /// # Errors
    /// As [`load`].
    pub fn frame(&mut self) -> Result<Decoder<B>, Error> {
        self.frame_as(false)
    }

    /// [`Self::frame`], with the token embeddings off the device where they can be.
    fn frame_as(&mut self, host_embeddings: bool) -> Result<Decoder<B>, Error> {
        let (spec, paths) = (self.spec, self.spec.paths);
        let weight = |path: &str| format!("{path}.weight");
        let table = [spec.vocab_size, spec.hidden_size];
        let embedding = match host_embeddings && !spec.tied {
            true => Table::Host(self.host_table(&weight(paths.embedding), spec.hidden_size)?),
            false => Table::Device(self.dense(&weight(paths.embedding), table)?),
        };
        let final_norm = self.read(|reader| reader.norm(spec.final_norm.path, &spec.final_norm))?;
        let final_norm = final_norm.place(self.dtype, self.device);
        let per_layer = match &spec.per_layer {
            Some(own) => Some(self.per_layer(own)?),
            None => None,
        };
        let head = match &embedding {
            Table::Device(table) if spec.tied => table.clone(),
            _ => self.dense(&weight(paths.head), table)?,
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
            per_layer,
            layers: Layers::resident(Vec::new()),
            final_norm,
            head,
            head_bias,
            rotations: Rotations::new(),
        })
    }

    /// A table that is opened and not read.
    fn host_table(&mut self, name: &str, width: usize) -> Result<HostTable, Error> {
        self.read(|reader| {
            (reader.report)(name);
            HostTable::stored(reader.weights, name.to_owned(), width)
        })
    }

    /// Embeddings by layer, whose table is opened and not read.
    fn per_layer(&mut self, spec: &PerLayerSpec) -> Result<PerLayer<B>, Error> {
        let projection =
            self.dense(&format!("{}.weight", spec.projection), [spec.numbers(), self.spec.hidden_size])?;
        let norm = self.read(|reader| reader.norm(spec.norm.path, &spec.norm))?;
        let table = self.host_table(&format!("{}.weight", spec.table), spec.numbers())?;
        let norm = norm.place(self.dtype, self.device);
        Ok(PerLayer { spec: spec.clone(), table, projection, norm })
    }

    /// Some layers in some order, each read when the walk comes to it.
    pub fn walk(&mut self, order: Order) -> Walk<'_, B> {
        Walk::reading(order, |layer| self.layer(layer))
    }

    fn layer(&mut self, layer: usize) -> Result<Layer<B>, Error> {
        self.stored(layer)?.place(self.dtype, self.device, None)
    }

    /// A layer in host memory.
    fn stored(&mut self, layer: usize) -> Result<StoredLayer, Error> {
        self.read(|reader| reader.layer(layer, true))
    }

    /// A tensor in the compute dtype.
    fn dense<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Result<Tensor<B, D>, Error> {
        let data = self.read(|reader| reader.dense(name, &shape))?;
        Ok(stored::dense(data, self.dtype, self.device))
    }

    fn read<T>(&mut self, read: impl FnOnce(&mut Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let Self { weights, spec, checked, quantization, dtype, progress, done, total, .. } = self;
        let mut report = |tensor: &str| {
            *done += 1;
            (*progress)(Progress { tensor, done: *done, total: *total });
        };
        let (quantization, dtype, report) = (*quantization, *dtype, &mut report);
        read(&mut Reader { weights, spec, checked, quantization, dtype, report })
    }
}
