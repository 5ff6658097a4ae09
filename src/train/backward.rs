//! One micro-batch, forward and backward: the loop over layers.
//!
//! The backward pass walks the layers from the top. The forward pass of a layer saved what its backward needs
//! (`Tape::Saved`), or only its input, and is run again first (`Tape::Input`): memory for time. Both ways run the same
//! operations on the same numbers, so the gradients are the same bit for bit. The layers at the top save: their memory is
//! free again before the others need it.
//!
//! Below the lowest adapted layer nothing is differentiated, unless the embeddings are trained. Gradients are those of a
//! sum over tokens; the mean is taken once, at the end.

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;

use super::balance::Counted;
use super::error::FitError;
use super::expert_load::ExpertLoad;
use super::saved_inputs::SavedInput;
use crate::adapter::lora::{DropoutStep, LoraSet, StepAdapters};
use crate::adapter::parameter::Part;
use crate::adapter::projection::LayerGradients;
use crate::adapter::saved::{SavedKind, SavedModule};
use crate::adapter::target::Target;
use crate::data::batch::MicroBatch;
use crate::model::layers::choice::{Balance, Choice};
use crate::model::layers::{LayerInputs, LayerTape, Order};
use crate::model::{self, Decoder};
use crate::objective::{self, Comparison, Objective, Summed, TrainedHead};

/// Adapter gradients of the objective, summed over the micro-batches of an optimizer step.
#[derive(Debug)]
pub struct Gradients<B: KernelBackend> {
    layers: Vec<LayerGradients<B>>,
    embedding: Option<Tensor<B, 2>>,
    head: Option<Tensor<B, 2>>,
}

impl<B: KernelBackend> Gradients<B> {
    /// No gradient yet in any of `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| LayerGradients::default()).collect(), embedding: None, head: None }
    }

    /// How many tokens were sent to each expert of each layer that was differentiated.
    pub fn expert_load(&self) -> ExpertLoad {
        ExpertLoad::of(self.layers.iter().map(|layer| layer.load().to_vec()).collect())
    }

    /// One entry for each parameter of `adapters`, in their order; `None` where no micro-batch was added.
    pub fn by_parameter(&self, adapters: &LoraSet<B>) -> Vec<Option<Tensor<B, 2>>> {
        let parts = |target: &Target| {
            let module = &target.module;
            let layer = self.layers.get(module.layer);
            let pair = layer.and_then(|layer| layer.get(module.slot));
            let magnitude = layer.and_then(|layer| layer.magnitude(module.slot));
            let gradient = |(part, _)| match part {
                Part::A => pair.map(|gradient| gradient.a.clone()),
                Part::B => pair.map(|gradient| gradient.b.clone()),
                Part::Magnitude => magnitude.cloned(),
                Part::Saved => None,
            };
            target.parts().map(gradient).collect::<Vec<_>>()
        };
        let saved = |saved: &SavedModule| match saved.kind {
            SavedKind::Embedding => self.embedding.clone(),
            SavedKind::Head => self.head.clone(),
        };
        adapters.targets().iter().flat_map(parts).chain(adapters.saved_modules().iter().map(saved)).collect()
    }
}

/// What the forward pass saves for the backward pass of one layer.
enum Tape<B: KernelBackend> {
    /// The layer's input, and what its routers chose; its forward pass is run again.
    Input(SavedInput<B>, Vec<Choice<B>>),
    /// All that its backward needs.
    Saved(Box<LayerTape<B>>),
}

/// How a micro-batch is run.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Names the dropout masks.
    pub dropout: DropoutStep,
    /// How many of the top layers save what their backward needs.
    pub keep: usize,
    /// Factor on the loss that spreads tokens over the experts of mixtures; 0: there is none.
    pub balance: f64,
    /// Whether the inputs of the other layers wait in host memory, where that is not the device's.
    pub parks: bool,
}

/// Adds the adapter gradients of the objective's sum over one micro-batch to `gradients` and returns that sum. Does not
/// wait for the device.
///
/// # Errors
/// Token ids outside the vocabulary, or a layer that cannot be read.
pub fn forward_backward<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapters: &StepAdapters<'_, B>,
    objective: &Objective,
    comparison: &Comparison<B>,
    batch: &MicroBatch,
    pass: Pass,
    gradients: &mut Gradients<B>,
) -> Result<Summed<B>, FitError> {
    let decoder = &decoder.adopting(adapters.set());
    decoder.on_workers(|| differentiate(decoder, adapters, objective, comparison, batch, pass, gradients))
}

/// [`forward_backward`] on the thread that calls it.
fn differentiate<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapters: &StepAdapters<'_, B>,
    objective: &Objective,
    comparison: &Comparison<B>,
    batch: &MicroBatch,
    pass: Pass,
    gradients: &mut Gradients<B>,
) -> Result<Summed<B>, FitError> {
    let set = adapters.set();
    let layers = decoder.layers().len();
    let trains_embedding = set.saved(SavedKind::Embedding).is_some();
    let lowest = match trains_embedding {
        true => 0,
        false => set.targets().first().map_or(layers, |target| target.module.layer),
    };
    let head = set.saved(SavedKind::Head).cloned();
    B::begin_pass(decoder.device(), batch.tokens());
    let mut hidden = decoder.embed(&batch.input_ids)?;
    let mut inputs = layer_inputs(decoder, batch, &hidden)?;
    let mut counted = Counted::new(pass.balance);
    if counted.is_some() {
        inputs.balance = Balance::Shares;
    }
    let tokens = batch.tokens();
    let adapters_of = |layer: usize| adapters.layer(layer, Some(pass.dropout));

    let mut tapes = Vec::with_capacity(layers - lowest);
    for step in decoder.layers().walk_with(Order::Up(0..layers), batch.tokens()) {
        let (index, layer) = step?;
        let adapters = adapters_of(index);
        if index >= lowest && index + pass.keep >= layers {
            let (output, tape) = layer.forward_with_tape(hidden, &adapters, &inputs);
            counted.iter_mut().for_each(|counted| counted.add(tape.choices(), tokens));
            tapes.push(Tape::Saved(Box::new(tape)));
            hidden = output;
            continue;
        }
        let input = (index >= lowest).then(|| SavedInput::new(hidden.clone(), pass.parks));
        let (output, choices) = layer.forward_with_choices(hidden, &adapters, &inputs);
        counted.iter_mut().for_each(|counted| counted.add(&choices, tokens));
        tapes.extend(input.map(|input| Tape::Input(input, choices)));
        hidden = output;
    }

    let head = head.map(|weight| TrainedHead { weight, sum: gradients.head.take() });
    let mut found = objective.differentiate(decoder, &hidden, batch, comparison, head, !tapes.is_empty());
    gradients.head = found.head;
    let mut upstream = found.hidden;
    let divisor = objective.divisor(&batch.counts()) as f64;
    if let Some((loss, slopes)) = counted.and_then(|counted| counted.loss(divisor)) {
        found.loss.value = found.loss.value + loss;
        inputs.balance = slopes;
    }
    drop(hidden);
    for step in decoder.layers().walk_with(Order::Down(lowest..layers), batch.tokens()) {
        let (index, layer) = step?;
        let (Some(tape), Some(dy)) = (tapes.pop(), upstream.take()) else { break };
        let adapters = adapters_of(index);
        let tape = match tape {
            Tape::Saved(tape) => *tape,
            Tape::Input(input, choices) => layer.tape(input.fetch()?, &adapters, &inputs, choices),
        };
        let sums = &mut gradients.layers[index];
        upstream = layer.backward(tape, &adapters, &inputs, dy, index > lowest || trains_embedding, sums);
    }
    if let Some(dx) = upstream.filter(|_| trains_embedding) {
        let sum = gradients.embedding.take();
        gradients.embedding = Some(decoder.embed_backward(&batch.input_ids, dx, sum)?);
    }
    Ok(found.loss)
}

/// The objective's sum over one micro-batch, without gradients and without dropout.
///
/// # Errors
/// As [`forward_backward`].
pub fn evaluate<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapters: &StepAdapters<'_, B>,
    objective: &Objective,
    comparison: &Comparison<B>,
    batch: &MicroBatch,
) -> Result<Summed<B>, FitError> {
    let decoder = &decoder.adopting(adapters.set());
    decoder.on_workers(|| {
        let hidden = last_hidden(decoder, adapters, batch)?;
        Ok(objective.loss(decoder, &hidden, batch, comparison))
    })
}

/// The summed negative log-likelihood of each document of a micro-batch, f32 `[documents]`, without dropout.
///
/// # Errors
/// As [`forward_backward`].
pub fn document_sums<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapters: &StepAdapters<'_, B>,
    batch: &MicroBatch,
) -> Result<Tensor<B, 1>, FitError> {
    let decoder = &decoder.adopting(adapters.set());
    decoder.on_workers(|| {
        let hidden = last_hidden(decoder, adapters, batch)?;
        Ok(objective::document_sums(decoder, &hidden, batch))
    })
}

/// The hidden states that leave the last layer, `[tokens, hidden]`, without dropout.
fn last_hidden<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapters: &StepAdapters<'_, B>,
    batch: &MicroBatch,
) -> Result<Tensor<B, 2>, FitError> {
    B::begin_pass(decoder.device(), batch.tokens());
    let mut hidden = decoder.embed(&batch.input_ids)?;
    let inputs = layer_inputs(decoder, batch, &hidden)?;
    for step in decoder.layers().walk_with(Order::Up(0..decoder.layers().len()), batch.tokens()) {
        let (index, layer) = step?;
        hidden = layer.forward(hidden, &adapters.layer(index, None), &inputs, None);
    }
    Ok(hidden)
}

/// What every layer is given for a micro-batch with embeddings `x`.
///
/// # Errors
/// A position beyond the keys there are; embeddings by layer that can no longer be read.
pub fn layer_inputs<B: KernelBackend>(
    decoder: &Decoder<B>,
    batch: &MicroBatch,
    x: &Tensor<B, 2>,
) -> Result<LayerInputs<B>, model::Error> {
    let documents = match batch.prefixes.as_slice() {
        [] => DocumentOffsets::packed(&batch.document_offsets),
        prefixes => DocumentOffsets::with_prefixes(&batch.document_offsets, prefixes),
    };
    decoder.inputs_of(&batch.input_ids, x, &batch.position_ids, documents)
}
