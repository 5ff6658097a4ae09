//! One micro-batch, forward and backward: the loop over layers.
//!
//! The backward pass walks the layers from the top. A layer has kept what its backward needs ([`Tape::Kept`]), or only
//! its input, and its forward is run again first ([`Tape::Input`]): memory for time. Both ways run the same operations
//! on the same numbers, so the gradients are the same bit for bit. The layers at the top keep: theirs is given back
//! first, when the others come to need it.
//!
//! Below the lowest adapted layer nothing is differentiated. Gradients are those of a sum over tokens; whoever wants a
//! mean divides once, at the end.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;

use super::fit::FitError;
use crate::adapter::lora::{DropoutStep, LoraSet};
use crate::adapter::projection::LayerGradients;
use crate::data::batch::MicroBatch;
use crate::model::Decoder;
use crate::model::layers::{LayerInputs, LayerTape};
use crate::objective::sft::negative_log_likelihood;

/// Adapter gradients of Σ nll, summed over the micro-batches of an optimizer step.
#[derive(Debug)]
pub struct Gradients<B: KernelBackend> {
    layers: Vec<LayerGradients<B>>,
}

impl<B: KernelBackend> Gradients<B> {
    /// No gradient yet in any of `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| LayerGradients::default()).collect() }
    }

    /// One entry for each parameter of `adapters`, in their order; `None` where no micro-batch was added.
    pub fn by_parameter(&self, adapters: &LoraSet<B>) -> Vec<Option<Tensor<B, 2>>> {
        let pair = |target: &crate::adapter::target::Target| {
            let gradient = self.layers.get(target.module.layer)?.get(target.module.projection)?;
            Some([gradient.a.clone(), gradient.b.clone()])
        };
        let pairs = adapters.targets().iter().map(pair);
        pairs.flat_map(|pair| pair.map_or([None, None], |pair| pair.map(Some))).collect()
    }
}

/// What the forward pass leaves behind for the backward pass of one layer.
enum Tape<B: KernelBackend> {
    /// The layer's input; its forward pass is run again.
    Input(Tensor<B, 2>),
    /// All that its backward needs.
    Kept(Box<LayerTape<B>>),
}

/// How a micro-batch is run.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Names the dropout masks.
    pub dropout: DropoutStep,
    /// How many of the top layers keep what their backward needs.
    pub keep: usize,
}

/// Adds the adapter gradients of `Σ nll` over one micro-batch to `gradients` and returns `Σ nll`.
///
/// # Errors
/// [`FitError::Model`] for token ids outside the vocabulary.
pub fn forward_backward<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapters: &LoraSet<B>,
    batch: &MicroBatch,
    pass: Pass,
    gradients: &mut Gradients<B>,
) -> Result<f64, FitError> {
    let layers = decoder.layers().len();
    let lowest = adapters.targets().first().map_or(layers, |target| target.module.layer);
    let inputs = layer_inputs(decoder, batch)?;
    let dropout = Some(pass.dropout);

    let mut tapes = Vec::with_capacity(layers - lowest);
    let mut hidden = decoder.embed(&batch.input_ids)?;
    for (index, layer) in decoder.layers().iter().enumerate() {
        let adapters = adapters.layer(index, dropout);
        if index >= lowest && index + pass.keep >= layers {
            let (output, tape) = layer.forward_with_tape(hidden, &adapters, &inputs);
            tapes.push(Tape::Kept(Box::new(tape)));
            hidden = output;
            continue;
        }
        if index >= lowest {
            tapes.push(Tape::Input(hidden.clone()));
        }
        hidden = layer.forward(hidden, &adapters, &inputs, None);
    }

    let found = negative_log_likelihood(decoder, &hidden, &batch.targets, !tapes.is_empty());
    drop(hidden);
    let mut upstream = found.gradient;
    for index in (lowest..layers).rev() {
        let (Some(tape), Some(dy)) = (tapes.pop(), upstream.take()) else { break };
        let layer = &decoder.layers()[index];
        let adapters = adapters.layer(index, dropout);
        let tape = match tape {
            Tape::Kept(tape) => *tape,
            Tape::Input(hidden) => layer.forward_with_tape(hidden, &adapters, &inputs).1,
        };
        let sums = &mut gradients.layers[index];
        upstream = layer.backward(tape, &adapters, &inputs, dy, index > lowest, sums);
    }
    Ok(loss_value(found.loss))
}

/// `Σ nll` of one micro-batch, without gradients and without dropout.
///
/// # Errors
/// [`FitError::Model`] for token ids outside the vocabulary.
pub fn evaluate<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapters: &LoraSet<B>,
    batch: &MicroBatch,
) -> Result<f64, FitError> {
    let inputs = layer_inputs(decoder, batch)?;
    let mut hidden = decoder.embed(&batch.input_ids)?;
    for (index, layer) in decoder.layers().iter().enumerate() {
        hidden = layer.forward(hidden, &adapters.layer(index, None), &inputs, None);
    }
    Ok(loss_value(negative_log_likelihood(decoder, &hidden, &batch.targets, false).loss))
}

fn layer_inputs<B: KernelBackend>(
    decoder: &Decoder<B>,
    batch: &MicroBatch,
) -> Result<LayerInputs<B>, FitError> {
    let documents = DocumentOffsets::packed(&batch.document_offsets);
    Ok(decoder.inputs(&batch.position_ids, documents)?)
}

/// The one number of a loss tensor; NaN when the device cannot give it, which ends the run as any other NaN does.
fn loss_value<B: KernelBackend>(loss: Tensor<B, 1>) -> f64 {
    let values = loss.try_into_data().ok().and_then(|data| data.into_vec::<f32>().ok());
    values.and_then(|values| values.first().copied()).map_or(f64::NAN, f64::from)
}
