//! One micro-batch, forward and backward: the loop over layers.
//!
//! The forward pass runs without autodiff and keeps each layer's input. The backward pass walks the layers from the
//! top: it runs one layer again under autodiff, seeds it with the gradient of its output, takes the adapter gradients
//! and the gradient of its input, and drops the graph. Peak memory is layers × hidden states + one layer's graph.
//!
//! A layer may instead keep the graph of its forward pass ([`Tape::Kept`]), which trades that memory for the second
//! forward. Both ways run the same operations on the same numbers, so the gradients are the same bit for bit.

use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor, TensorData};
use tune_kernels::backend::KernelBackend;
use tune_kernels::seed::backward_with;

use crate::adapter::lora::{Gradients, LeafLayer, LoraSet, PassKey};
use crate::data::batch::MicroBatch;
use crate::model::{Decoder, LayerInputs};
use crate::objective::sft::negative_log_likelihood;

/// What the forward pass leaves behind for the backward pass of one layer.
enum Tape<B: KernelBackend<Frozen = B>> {
    /// The layer's input; its forward pass is run again.
    Input(Tensor<B, 2>),
    /// The layer's graph.
    Kept(LayerGraph<B>),
}

/// One layer's forward pass under autodiff.
struct LayerGraph<B: KernelBackend<Frozen = B>> {
    input: Tensor<Autodiff<B>, 2>,
    output: Tensor<Autodiff<B>, 2>,
    leaves: LeafLayer<B>,
}

/// Which part of the backward pass a layer takes.
struct LayerLoop<'a, B: KernelBackend<Frozen = B>> {
    decoder: &'a Decoder<B>,
    adapters: &'a LoraSet<B>,
    inputs: LayerInputs<B>,
    key: PassKey,
    /// Lowest layer that has an adapter: no gradient is needed below its projections.
    lowest: usize,
}

impl<B: KernelBackend<Frozen = B>> LayerLoop<'_, B>
where
    Autodiff<B>: KernelBackend<Frozen = B>,
{
    /// Runs `layer` under autodiff on `hidden`.
    fn graph(&self, layer: usize, hidden: Tensor<B, 2>) -> LayerGraph<B> {
        let input = Tensor::<Autodiff<B>, 2>::from_inner(hidden);
        let input = if layer > self.lowest { input.require_grad() } else { input };
        let leaves = self.adapters.leaves(layer, self.key);
        let output = self.decoder.layers()[layer].forward(input.clone(), leaves.adapters(), &self.inputs);
        LayerGraph { input, output, leaves }
    }
}

/// Adds the adapter gradients of `scale · Σ nll` over one micro-batch to `gradients` and returns the unscaled `Σ nll`.
///
/// `scale` is one over the supervised tokens of the whole optimizer step. The top `keep` layers keep their activations.
pub fn forward_backward<B>(
    decoder: &Decoder<B>,
    adapters: &LoraSet<B>,
    batch: &MicroBatch,
    key: PassKey,
    scale: f64,
    keep: usize,
    gradients: &mut Gradients<B>,
) -> f64
where
    B: KernelBackend<Frozen = B>,
    Autodiff<B>: KernelBackend<Frozen = B>,
{
    let layers = decoder.layers().len();
    let device = decoder.device();
    let walk = LayerLoop {
        decoder,
        adapters,
        inputs: decoder.layer_inputs(batch.position_ids.as_slice(), &batch.document_offsets),
        key,
        lowest: adapters.lowest_layer(),
    };

    let mut tapes = Vec::with_capacity(layers - walk.lowest);
    let mut hidden = decoder.embed(&batch.input_ids);
    for layer in 0..layers {
        if layer < walk.lowest {
            hidden = decoder.layers()[layer].forward(hidden, &adapters.layer(layer, Some(key)), &walk.inputs);
        } else if layer + keep >= layers {
            let graph = walk.graph(layer, hidden);
            hidden = graph.output.clone().inner();
            tapes.push(Tape::Kept(graph));
        } else {
            tapes.push(Tape::Input(hidden.clone()));
            hidden = decoder.layers()[layer].forward(hidden, &adapters.layer(layer, Some(key)), &walk.inputs);
        }
    }

    let targets = target_tensor::<B>(batch, &device);
    let top = Tensor::<Autodiff<B>, 2>::from_inner(hidden).require_grad();
    let loss = negative_log_likelihood(decoder, top.clone(), &targets);
    let sum = f64::from(loss.clone().inner().into_scalar_f32());
    let mut graph_gradients = backward_with(loss, Tensor::from_floats([scale as f32], &device));
    let Some(mut upstream) = top.grad_remove(&mut graph_gradients) else { return sum };

    for layer in (walk.lowest..layers).rev() {
        let graph = match tapes.pop() {
            Some(Tape::Kept(graph)) => graph,
            Some(Tape::Input(hidden)) => walk.graph(layer, hidden),
            None => break,
        };
        let mut layer_gradients = backward_with(graph.output, upstream);
        gradients.collect(&graph.leaves, &mut layer_gradients);
        match graph.input.grad_remove(&mut layer_gradients) {
            Some(gradient) => upstream = gradient,
            None => break,
        }
    }
    sum
}

/// `Σ nll` of one micro-batch, without gradients and without dropout.
pub fn evaluate<B>(decoder: &Decoder<B>, adapters: &LoraSet<B>, batch: &MicroBatch) -> f64
where
    B: KernelBackend<Frozen = B>,
{
    let inputs = decoder.layer_inputs(batch.position_ids.as_slice(), &batch.document_offsets);
    let mut hidden = decoder.embed(&batch.input_ids);
    for (index, layer) in decoder.layers().iter().enumerate() {
        hidden = layer.forward(hidden, &adapters.layer(index, None), &inputs);
    }
    let targets = target_tensor::<B>(batch, &decoder.device());
    f64::from(negative_log_likelihood(decoder, hidden, &targets).into_scalar_f32())
}

fn target_tensor<B: KernelBackend>(batch: &MicroBatch, device: &B::Device) -> Tensor<B, 1, Int> {
    Tensor::from_data(TensorData::new(batch.targets.clone(), [batch.targets.len()]), device)
}
