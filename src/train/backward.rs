//! One micro-batch, forward and backward: the loop over layers.
//!
//! The forward pass runs without autodiff and keeps each layer's input. The backward pass walks the layers from the
//! top: it runs one layer again under autodiff, seeds it with the gradient of its output, takes the adapter gradients
//! and the gradient of its input, and drops the graph. Peak memory is layers × hidden states + one layer's graph.
//!
//! A layer may instead keep the graph of its forward pass ([`Tape::Kept`]), which trades that memory for the second
//! forward. Both ways run the same operations on the same numbers, so the gradients are the same bit for bit.
//!
//! Below the lowest adapted layer nothing is differentiated.

use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor, TensorData};
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::seed::backward_with;

use super::fit::FitError;
use crate::adapter::lora::{DropoutStep, LoraSet};
use crate::adapter::projection::LayerAdapters;
use crate::data::batch::MicroBatch;
use crate::model::Decoder;
use crate::model::layers::LayerInputs;
use crate::objective::sft::negative_log_likelihood;

/// Adapter gradients summed over the micro-batches of an optimizer step, numbered as [`LoraSet::parameters`].
#[derive(Debug)]
pub struct Gradients<B: KernelBackend> {
    tensors: Vec<Option<Tensor<B, 2>>>,
}

impl<B: KernelBackend> Gradients<B> {
    /// No gradient yet for any of `parameters` matrices.
    pub fn new(parameters: usize) -> Self {
        Self { tensors: (0..parameters).map(|_| None).collect() }
    }

    fn add(&mut self, index: usize, gradient: Tensor<B, 2>) {
        let sum = match self.tensors[index].take() {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.tensors[index] = Some(sum);
    }

    /// The gradients there are, in the order of the parameters.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor<B, 2>> {
        self.tensors.iter().flatten()
    }

    /// One entry for each parameter; `None` where no micro-batch was added.
    pub fn into_tensors(self) -> Vec<Option<Tensor<B, 2>>> {
        self.tensors
    }
}

/// What the forward pass leaves behind for the backward pass of one layer.
enum Tape<B: KernelBackend<Frozen = B>>
where
    Autodiff<B>: KernelBackend<Frozen = B>,
{
    /// The layer's input; its forward pass is run again.
    Input(Tensor<B, 2>),
    /// The layer's graph.
    Kept(Box<LayerGraph<B>>),
}

/// One layer's forward pass under autodiff.
struct LayerGraph<B: KernelBackend<Frozen = B>>
where
    Autodiff<B>: KernelBackend<Frozen = B>,
{
    input: Tensor<Autodiff<B>, 2>,
    output: Tensor<Autodiff<B>, 2>,
    adapters: LayerAdapters<Autodiff<B>>,
}

/// How a micro-batch is run.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Names the dropout masks.
    pub dropout: DropoutStep,
    /// One over the supervised tokens of the whole optimizer step.
    pub scale: f64,
    /// How many of the top layers keep the graph of their forward pass.
    pub keep: usize,
}

/// Adds the adapter gradients of `scale · Σ nll` over one micro-batch to `gradients` and returns the unscaled `Σ nll`.
///
/// # Errors
/// [`FitError::Model`] for token ids outside the vocabulary, [`FitError::Adapter`] when a backward pass leaves an
/// adapter without its gradient.
pub fn forward_backward<B>(
    decoder: &Decoder<B>,
    adapters: &LoraSet<B>,
    batch: &MicroBatch,
    pass: Pass,
    gradients: &mut Gradients<B>,
) -> Result<f64, FitError>
where
    B: KernelBackend<Frozen = B>,
    Autodiff<B>: KernelBackend<Frozen = B>,
{
    let layers = decoder.layers().len();
    let lowest = adapters.targets().first().map_or(layers, |target| target.module.layer);
    let inputs = layer_inputs(decoder, batch)?;
    let dropout = Some(pass.dropout);
    let graph = |layer: usize, hidden: Tensor<B, 2>| {
        let input = Tensor::<Autodiff<B>, 2>::from_inner(hidden);
        let input = if layer > lowest { input.require_grad() } else { input };
        let adapters = adapters.lift(layer, dropout);
        let output = decoder.layers()[layer].forward(input.clone(), &adapters, &inputs);
        LayerGraph { input, output, adapters }
    };

    let mut tapes = Vec::with_capacity(layers - lowest);
    let mut hidden = decoder.embed(&batch.input_ids)?;
    for layer in 0..layers {
        if layer >= lowest && layer + pass.keep >= layers {
            let kept = graph(layer, hidden);
            hidden = kept.output.clone().inner();
            tapes.push(Tape::Kept(Box::new(kept)));
            continue;
        }
        if layer >= lowest {
            tapes.push(Tape::Input(hidden.clone()));
        }
        hidden = decoder.layers()[layer].forward(hidden, &adapters.layer(layer, dropout), &inputs);
    }

    let top = Tensor::<Autodiff<B>, 2>::from_inner(hidden).require_grad();
    let loss = negative_log_likelihood(decoder, top.clone(), &target_tensor::<B>(decoder, batch));
    let sum = loss_value(loss.clone().inner());
    let scale = Tensor::from_floats([pass.scale as f32], decoder.device());
    let mut upstream = top.grad_remove(&mut backward_with(loss, scale));

    for layer in (lowest..layers).rev() {
        let (Some(tape), Some(gradient)) = (tapes.pop(), upstream.take()) else { break };
        let graph = match tape {
            Tape::Kept(graph) => *graph,
            Tape::Input(hidden) => graph(layer, hidden),
        };
        let mut layer_gradients = backward_with(graph.output, gradient);
        for (index, gradient) in adapters.take_gradients(layer, &graph.adapters, &mut layer_gradients)? {
            gradients.add(index, gradient);
        }
        upstream = graph.input.grad_remove(&mut layer_gradients);
    }
    Ok(sum)
}

/// `Σ nll` of one micro-batch, without gradients and without dropout.
///
/// # Errors
/// [`FitError::Model`] for token ids outside the vocabulary.
pub fn evaluate<B>(decoder: &Decoder<B>, adapters: &LoraSet<B>, batch: &MicroBatch) -> Result<f64, FitError>
where
    B: KernelBackend<Frozen = B>,
{
    let inputs = layer_inputs(decoder, batch)?;
    let mut hidden = decoder.embed(&batch.input_ids)?;
    for (index, layer) in decoder.layers().iter().enumerate() {
        hidden = layer.forward(hidden, &adapters.layer(index, None), &inputs);
    }
    Ok(loss_value(negative_log_likelihood(decoder, hidden, &target_tensor::<B>(decoder, batch))))
}

fn layer_inputs<B: KernelBackend<Frozen = B>>(
    decoder: &Decoder<B>,
    batch: &MicroBatch,
) -> Result<LayerInputs<B>, FitError> {
    let documents = DocumentOffsets::packed(&batch.document_offsets);
    Ok(decoder.inputs(&batch.position_ids, documents)?)
}

fn target_tensor<B: KernelBackend<Frozen = B>>(
    decoder: &Decoder<B>,
    batch: &MicroBatch,
) -> Tensor<B, 1, Int> {
    Tensor::from_data(TensorData::new(batch.targets.clone(), [batch.targets.len()]), decoder.device())
}

/// The one number of a loss tensor; NaN when the device cannot give it, which ends the run as any other NaN does.
fn loss_value<B: KernelBackend>(loss: Tensor<B, 1>) -> f64 {
    let values = loss.try_into_data().ok().and_then(|data| data.into_vec::<f32>().ok());
    values.and_then(|values| values.first().copied()).map_or(f64::NAN, f64::from)
}
