//! The losses of a dense base and of the same base in 4 bits over the same micro-batches, in f32 and one layer at a time.

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;

use crate::adapter::projection::LayerAdapters;
use crate::data::batch::MicroBatch;
use crate::export::Error;
use crate::export::base::OpenedBase;
use crate::model::layers::{Layer, LayerInputs, Order};
use crate::model::load::{Loader, Progress};
use crate::model::{Decoder, FloatDtype};
use crate::objective::document_sums;
use crate::quant::spec::Spec;
use crate::train::backward::layer_inputs;

/// A micro-batch on its way through both models.
struct UnderWay<B: KernelBackend> {
    dense: (Tensor<B, 2>, LayerInputs<B>),
    quantized: (Tensor<B, 2>, LayerInputs<B>),
}

/// The summed negative log-likelihood of each document of each micro-batch, dense and in 4 bits. Memory: embeddings and
/// output head, one layer of each, and the hidden states of all micro-batches.
///
/// # Errors
/// The base cannot be read, a token id is outside the vocabulary, or `stop` returned true.
pub fn losses<B: KernelBackend>(
    base: &OpenedBase,
    blocks: Spec,
    batches: &[MicroBatch],
    device: &B::Device,
    progress: &mut dyn FnMut(usize, usize),
    stop: &dyn Fn() -> bool,
) -> Result<Vec<[Vec<f64>; 2]>, Error> {
    let (weights, spec) = (base.folder.weights(), &base.spec);
    let (mut silent, mut as_silent) = (|_: Progress<'_>| {}, |_: Progress<'_>| {});
    let mut dense = Loader::<B>::new(weights, spec, None, FloatDtype::F32, device, &mut silent)?;
    let mut quantized =
        Loader::<B>::new(weights, spec, Some(blocks), FloatDtype::F32, device, &mut as_silent)?;
    let frame = dense.frame()?;
    let begin = |batch: &MicroBatch| -> Result<UnderWay<B>, Error> {
        let x = frame.embed(&batch.input_ids)?;
        let inputs = layer_inputs(&frame, batch, &x)?;
        Ok(UnderWay { dense: (x.clone(), inputs.apart()), quantized: (x, inputs) })
    };
    let mut under_way = batches.iter().map(begin).collect::<Result<Vec<_>, _>>()?;
    drop(frame);
    let all = || Order::Up(0..spec.layers.len());
    let none = LayerAdapters::none();
    let forward = |layer: &Layer<B>, (x, inputs): &mut (Tensor<B, 2>, LayerInputs<B>)| {
        *x = layer.forward(x.clone(), &none, inputs, None);
    };
    for (one, other) in dense.walk(all()).zip(quantized.walk(all())) {
        let ((index, layer), (_, packed)) = (one?, other?);
        for UnderWay { dense, quantized } in &mut under_way {
            if stop() {
                return Err(Error::Stopped);
            }
            forward(&layer, dense);
            forward(&packed, quantized);
        }
        progress(index + 1, spec.layers.len());
    }
    let frame = dense.frame()?;
    let sums = |(batch, state): (&MicroBatch, UnderWay<B>)| {
        Ok([sums(&frame, state.dense.0, batch)?, sums(&frame, state.quantized.0, batch)?])
    };
    batches.iter().zip(under_way).map(sums).collect()
}

fn sums<B: KernelBackend>(
    frame: &Decoder<B>,
    hidden: Tensor<B, 2>,
    batch: &MicroBatch,
) -> Result<Vec<f64>, Error> {
    let sums = B::read_later(document_sums(frame, &hidden, batch)).wait();
    let sums = sums.map_err(|reason| Error::Diverged {
        message: format!("cannot read the losses from the device: {reason}"),
    })?;
    Ok(sums.into_iter().map(f64::from).collect())
}
