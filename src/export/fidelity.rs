//! What a written model keeps of what training gained: the loss on held-out rows of the base, of the adapter on it as it was
//! trained, and of what was written, read back from disk. One layer at a time, in f32.

use std::borrow::Cow;

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear_cross_entropy::linear_cross_entropy;

use super::Error;
use super::base::OpenedBase;
use crate::adapter::lora::LoraSet;
use crate::adapter::peft;
use crate::adapter::projection::LayerAdapters;
use crate::adapter::saved::SavedModule;
use crate::adapter::target::Target;
use crate::assets::WeightFiles;
use crate::data::batch::MicroBatch;
use crate::model::layers::Order;
use crate::model::load::{Loader, Progress};
use crate::model::{Decoder, DecoderSpec, FloatDtype};
use crate::quant::spec::Spec;
use crate::train::backward::layer_inputs;

/// The adapter of a training run.
#[derive(Clone, Copy)]
pub struct Adapted<'a> {
    /// Its files.
    pub adapter: &'a peft::Adapter,
    /// Its targets.
    pub targets: &'a [Target],
    /// Its modules to save.
    pub saved_modules: &'a [SavedModule],
    /// The quantization of the base in training; `None`: as stored.
    pub quantization: Option<Spec>,
}

/// The models to compare.
pub struct Sides<'a> {
    /// The base.
    pub base: &'a OpenedBase,
    /// The adapter in what was written; `None`: the base alone was written.
    pub adapted: Option<Adapted<'a>>,
    /// What was written.
    pub written: &'a WeightFiles,
    /// What it is made of.
    pub spec: &'a DecoderSpec,
}

/// Mean losses of supervised tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Losses {
    /// The base.
    pub base: f64,
    /// The adapter on the base as it was trained.
    pub trained: Option<f64>,
    /// What was written.
    pub written: f64,
}

/// Runs every model over `batches`. Memory: embeddings and output head, one layer in f32, and the hidden states of the rows.
///
/// # Errors
/// A folder cannot be read, a token id is outside the vocabulary, or `stop` returned true.
pub fn losses<B: KernelBackend>(
    sides: &Sides<'_>,
    batches: &[MicroBatch],
    device: &B::Device,
    progress: &mut dyn FnMut(usize, usize),
    stop: &dyn Fn() -> bool,
) -> Result<Losses, Error> {
    let adapters = match sides.adapted {
        Some(Adapted { adapter, targets, saved_modules, .. }) => {
            let set = LoraSet::from_values(targets.to_vec(), 0.0, adapter.values(targets)?, device)?;
            Some(adapter.with_own_saved_modules::<B>(set, saved_modules.to_vec(), device)?)
        }
        None => None,
    };
    let quantization = sides.adapted.and_then(|adapted| adapted.quantization);
    let (mut done, total) = (0, 2 * sides.base.spec.layers.len());
    let mut step = || {
        done += 1;
        progress(done, total);
        if stop() { Err(Error::Stopped) } else { Ok(()) }
    };
    let (mut silent, mut as_silent) = (|_: Progress<'_>| {}, |_: Progress<'_>| {});
    let (weights, spec, dtype) = (sides.base.folder.weights(), &sides.base.spec, FloatDtype::F32);
    let mut base = Loader::<B>::new(weights, spec, quantization, dtype, device, &mut silent)?;
    let models: Vec<Option<&LoraSet<B>>> = std::iter::once(None).chain(adapters.iter().map(Some)).collect();
    let sums = summed(&mut base, spec, &models, batches, &mut step)?;
    drop(base);
    let mut file = Loader::<B>::new(sides.written, sides.spec, None, dtype, device, &mut as_silent)?;
    let written = summed(&mut file, sides.spec, &[None], batches, &mut step)?;
    let tokens = batches.iter().map(|batch| batch.supervised_tokens).sum::<u64>().max(1) as f64;
    let mean = |sums: &[f64], at: usize| sums.get(at).map(|sum| sum / tokens);
    Ok(Losses {
        base: mean(&sums, 0).unwrap_or(f64::NAN),
        trained: mean(&sums, 1),
        written: mean(&written, 0).unwrap_or(f64::NAN),
    })
}

/// Σ nll over all batches of the model that is loaded, with each of the adapters on it.
fn summed<B: KernelBackend>(
    loader: &mut Loader<'_, B>,
    spec: &DecoderSpec,
    models: &[Option<&LoraSet<B>>],
    batches: &[MicroBatch],
    step: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<Vec<f64>, Error> {
    let frame = loader.frame()?;
    let begin = |adapters: &Option<&LoraSet<B>>| {
        let frame = with(&frame, *adapters);
        let begin = |batch: &MicroBatch| {
            let x = frame.embed(&batch.input_ids)?;
            Ok((layer_inputs(&frame, batch, &x)?, x))
        };
        batches.iter().map(begin).collect::<Result<Vec<_>, Error>>()
    };
    let mut under_way = models.iter().map(begin).collect::<Result<Vec<_>, Error>>()?;
    drop(frame);
    for walked in loader.walk(Order::Up(0..spec.layers.len())) {
        let (index, layer) = walked?;
        for (adapters, states) in models.iter().zip(&mut under_way) {
            // DoRA's norms belong to one base: computed anew.
            let own = adapters.map_or_else(LayerAdapters::none, |adapters| adapters.layer(index, None));
            for (inputs, x) in states {
                *x = layer.forward(x.clone(), &own, inputs, None);
            }
        }
        step()?;
    }
    let frame = loader.frame()?;
    let sum = |(adapters, states): (&Option<&LoraSet<B>>, Vec<(_, Tensor<B, 2>)>)| {
        let frame = with(&frame, *adapters);
        let of_batch = |((_, x), batch): ((_, Tensor<B, 2>), &MicroBatch)| {
            let normed = frame.final_norm(&x);
            number(linear_cross_entropy(&normed, frame.head(), &batch.targets, false).loss)
        };
        states.into_iter().zip(batches).map(of_batch).sum::<Result<f64, Error>>()
    };
    models.iter().zip(under_way).map(sum).collect()
}

/// A frame with the saved modules of an adapter.
fn with<'a, B: KernelBackend>(frame: &'a Decoder<B>, adapters: Option<&LoraSet<B>>) -> Cow<'a, Decoder<B>> {
    adapters.map_or(Cow::Borrowed(frame), |adapters| frame.adopting(adapters))
}

fn number<B: KernelBackend>(loss: Tensor<B, 1>) -> Result<f64, Error> {
    let data = loss.try_into_data().map_err(|error| format!("{error:?}"));
    let values = data.and_then(|data| data.into_vec::<f32>().map_err(|error| format!("{error:?}")));
    let failed =
        |reason| Error::Choice { message: format!("cannot read the loss from the device: {reason}") };
    let values = values.map_err(failed)?;
    Ok(values.into_iter().map(f64::from).sum())
}
