//! One decoder layer: its frozen weights, and its forward and backward pass, block by block.
//!
//! `y = x + scale · post(Σᵢ postᵢ(bodyᵢ(preᵢ(x))))`. Where nothing stands between a body and the residual, its last product adds
//! onto the residual itself.

use std::sync::{Arc, OnceLock};

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;

use super::adapted::{ProjectedTape, project, project_tape};
use super::attention::{self, AttentionTape};
use super::cache::LayerCaches;
use super::choice::{Balance, Choice};
use super::delta_net::{self, DeltaNetTape};
use super::gated::{self, GatedTape};
use super::mixture::{self, MixtureTape};
use super::norm::{Norm, NormTensors};
use super::per_layer::{self, PerLayerTape};
use super::plain::{self, PlainTape};
use super::reading::{self, ReadingTape};
use super::shared::Shared;
use super::short_conv::{self, ShortConvTape};
use super::{Adapted, FrozenProjection};
use crate::adapter::projection::{LayerAdapters, LayerGradients, Slot};
use crate::model::absent::{Absent, Failure};
use crate::model::parts::{
    BlockSpec, BodySpec, BranchSpec, ConstantSpec, LayerSpec, NormSpec, ProjectionSpec,
};
use crate::model::rotations::Rotation;

/// What every layer of a forward pass is given beside the hidden state.
#[derive(Clone, Debug)]
pub struct LayerInputs<B: KernelBackend> {
    /// By kind of layer, as the decoder lists them.
    pub rotations: Vec<Rotation<B>>,
    /// Where documents begin and end.
    pub documents: DocumentOffsets,
    /// Keys and values that several layers read: one set for each pass over the layers.
    pub shared: Shared<B>,
    /// The parts of the embeddings by layer, `[tokens, layers · width]`, of decoders that have them.
    pub parts: Option<Tensor<B, 2>>,
    /// What mixtures are asked for the loss that spreads tokens over experts.
    pub balance: Balance<B>,
}

impl<B: KernelBackend> LayerInputs<B> {
    /// The same for another pass beside this one.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { shared: Shared::default(), ..self.clone() }
    }
}

/// One layer's frozen weights.
#[derive(Clone, Debug)]
pub struct Layer<B: KernelBackend> {
    spec: Arc<LayerSpec>,
    /// By slot. Those of experts may come when they are used.
    projections: Vec<OnceLock<FrozenProjection<B>>>,
    /// Where those come from.
    absent: Option<Absent<B>>,
    /// By place.
    norms: Vec<NormTensors<B>>,
    /// By place, as matrices.
    constants: Vec<Tensor<B, 2>>,
}

/// What a forward pass saves for the backward pass of a layer. Norms and activations are computed again: they cost little
/// beside the matrix products, and half the memory.
#[derive(Clone, Debug)]
pub struct LayerTape<B: KernelBackend> {
    blocks: Vec<BlockTape<B>>,
    choices: Vec<Choice<B>>,
}

impl<B: KernelBackend> LayerTape<B> {
    /// What its mixtures chose.
    pub fn choices(&self) -> &[Choice<B>] {
        &self.choices
    }
}

#[derive(Clone, Debug)]
struct BlockTape<B: KernelBackend> {
    /// The block's input, `[tokens, hidden]`.
    x: Tensor<B, 2>,
    branches: Vec<BranchTape<B>>,
    /// The sum of the branches, where a norm follows.
    sum: Option<Tensor<B, 2>>,
}

#[derive(Clone, Debug)]
struct BranchTape<B: KernelBackend> {
    body: BodyTape<B>,
    /// The body's output, where a norm follows.
    output: Option<Tensor<B, 2>>,
}

#[derive(Clone, Debug)]
enum BodyTape<B: KernelBackend> {
    Attention(Box<AttentionTape<B>>),
    Reading(Box<ReadingTape<B>>),
    DeltaNet(Box<DeltaNetTape<B>>),
    ShortConv(Box<ShortConvTape<B>>),
    Gated(Box<GatedTape<B>>),
    Mixture(Box<MixtureTape<B>>),
    Plain(Box<PlainTape<B>>),
    PerLayerInput(Box<PerLayerTape<B>>),
}

/// What a layer is called with.
pub(super) struct Call<'a, B: KernelBackend> {
    layer: &'a Layer<B>,
    adapters: &'a LayerAdapters<B>,
    pub(super) inputs: &'a LayerInputs<B>,
    pub(super) cache: Option<LayerCaches<'a, B>>,
    /// What its mixtures chose in an earlier pass over the same tokens.
    known: std::vec::IntoIter<Choice<B>>,
    /// What they chose in this one.
    choices: Vec<Choice<B>>,
}

/// What is wanted of a body's output.
#[derive(Clone, Copy, Debug)]
pub(super) enum Output<'a, B: KernelBackend> {
    /// The output, added to a residual where one is given.
    Onto(Option<&'a Tensor<B, 2>>),
    /// Nothing: the tape alone, for a backward pass that follows.
    Unread,
}

impl<B: KernelBackend> Output<'_, B> {
    /// The last product of a body, as far as it is wanted.
    pub(super) fn of(
        self,
        x: &Tensor<B, 2>,
        layer: Adapted<'_, B>,
    ) -> (Option<Tensor<B, 2>>, ProjectedTape<B>) {
        match self {
            Self::Onto(residual) => {
                let mut projected = project(x, &[layer], residual);
                (projected.outputs.pop(), projected.tape)
            }
            Self::Unread => (None, project_tape(x, &[layer])),
        }
    }
}

/// The gradient of a body's output, `[tokens, hidden]`, and whether that of its input is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upstream<'a, B: KernelBackend> {
    pub(super) dy: &'a Tensor<B, 2>,
    pub(super) wants_x: bool,
}

impl<'a, B: KernelBackend> Call<'a, B> {
    fn new(
        layer: &'a Layer<B>,
        adapters: &'a LayerAdapters<B>,
        inputs: &'a LayerInputs<B>,
        known: Vec<Choice<B>>,
    ) -> Self {
        Self { layer, adapters, inputs, cache: None, known: known.into_iter(), choices: Vec::new() }
    }

    /// What the next mixture chose in an earlier pass, else what it chooses now.
    pub(super) fn choice(&mut self, choose: impl FnOnce(&Balance<B>) -> Choice<B>) -> Choice<B> {
        let choice = self.known.next().unwrap_or_else(|| choose(&self.inputs.balance));
        self.choices.push(choice.clone());
        choice
    }

    /// A projection with its weight and adapter.
    pub(super) fn adapted(&self, spec: &ProjectionSpec) -> Adapted<'a, B> {
        let (layer, adapters) = (self.layer, self.adapters);
        Adapted { projection: layer.brought(spec), adapter: adapters.get(spec.slot), slot: spec.slot }
    }

    /// Brings projections that come when they are used, side by side.
    pub(super) fn bring(&self, specs: &[&ProjectionSpec]) {
        self.layer.bring(specs);
    }

    /// A norm with its weight.
    pub(super) fn norm<'s>(&self, spec: &'s NormSpec) -> Norm<'s, B>
    where
        'a: 's,
    {
        Norm { spec, tensors: &self.layer.norms[spec.place] }
    }

    /// A frozen tensor, as [`ConstantSpec::matrix`] shapes it.
    pub(super) fn constant(&self, spec: &ConstantSpec) -> &'a Tensor<B, 2> {
        &self.layer.constants[spec.place]
    }
}

impl<B: KernelBackend> Layer<B> {
    /// Of the weights of its projections by slot, and of its norms and constants by place.
    pub(in crate::model) fn new(
        spec: Arc<LayerSpec>,
        projections: Vec<OnceLock<FrozenProjection<B>>>,
        norms: Vec<NormTensors<B>>,
        constants: Vec<Tensor<B, 2>>,
    ) -> Self {
        Self { spec, projections, absent: None, norms, constants }
    }

    /// The same, whose projections that are not there come when they are used.
    #[must_use]
    pub(in crate::model) fn bringing(self, absent: Absent<B>) -> Self {
        Self { absent: Some(absent), ..self }
    }

    /// Brings some projections, as far as they are not there.
    fn bring(&self, specs: &[&ProjectionSpec]) {
        let Some(absent) = &self.absent else { return };
        let is_absent = |spec: &&&ProjectionSpec| self.projections[spec.slot].get().is_none();
        let wanted: Vec<_> = specs.iter().filter(is_absent).map(|spec| (spec.slot, spec.shape)).collect();
        for ((slot, _), brought) in wanted.iter().zip(absent.bring(&wanted)) {
            self.projections[*slot].get_or_init(|| brought);
        }
    }

    /// A projection, once it is there.
    fn brought(&self, spec: &ProjectionSpec) -> &FrozenProjection<B> {
        self.bring(&[spec]);
        self.projections[spec.slot]
            .get()
            .unwrap_or_else(|| unreachable!("all projections are there, or come"))
    }

    /// The slot that a failed fetch of a projection is written to.
    pub(in crate::model) fn failure(&self) -> Option<Failure> {
        self.absent.as_ref().map(|absent| Arc::clone(&absent.failure))
    }

    /// What it is made of.
    pub fn spec(&self) -> &LayerSpec {
        &self.spec
    }

    /// The projection in `slot`, which is one of [`Self::spec`]'s.
    pub fn projection(&self, slot: Slot) -> &FrozenProjection<B> {
        let spec = self.spec.projections().find(|projection| projection.slot == slot);
        self.brought(spec.unwrap_or_else(|| unreachable!("a slot of this layer")))
    }

    /// Bytes of its weights that are there.
    pub fn bytes(&self) -> u64 {
        let norms: usize = self.norms.iter().map(NormTensors::bytes).sum();
        let constants =
            self.constants.iter().map(|constant| constant.shape().num_elements() * constant.dtype().size());
        let small = norms + constants.sum::<usize>();
        let projections = self.projections.iter().filter_map(OnceLock::get);
        projections.map(FrozenProjection::bytes).sum::<u64>() + small as u64
    }

    /// `[tokens, hidden]` → `[tokens, hidden]`, with what a backward pass needs.
    pub fn forward_with_tape(
        &self,
        mut x: Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        inputs: &LayerInputs<B>,
    ) -> (Tensor<B, 2>, LayerTape<B>) {
        let mut call = Call::new(self, adapters, inputs, Vec::new());
        let mut tapes = Vec::with_capacity(self.spec.blocks().len());
        for block in self.spec.blocks() {
            let (y, tape) = forward(block, x, &mut call);
            tapes.push(tape);
            x = y;
        }
        (self.scaled(x), LayerTape { blocks: tapes, choices: call.choices })
    }

    /// What a backward pass needs, in the bits of [`Self::forward_with_tape`]; stops before products whose results nothing
    /// reads. `choices` are those of the forward pass that is run again.
    pub fn tape(
        &self,
        mut x: Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        inputs: &LayerInputs<B>,
        choices: Vec<Choice<B>>,
    ) -> LayerTape<B> {
        let mut call = Call::new(self, adapters, inputs, choices);
        let mut tapes = Vec::with_capacity(self.spec.blocks().len());
        let Some((last, before)) = self.spec.blocks().split_last() else {
            return LayerTape { blocks: tapes, choices: Vec::new() };
        };
        for block in before {
            let (y, tape) = forward(block, x, &mut call);
            tapes.push(tape);
            x = y;
        }
        tapes.push(tape(last, x, &mut call));
        LayerTape { blocks: tapes, choices: call.choices }
    }

    /// `[tokens, hidden]` → `[tokens, hidden]`. With caches the tokens continue the sequences in them.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        inputs: &LayerInputs<B>,
        cache: Option<LayerCaches<'_, B>>,
    ) -> Tensor<B, 2> {
        self.run(x, Call { cache, ..Call::new(self, adapters, inputs, Vec::new()) }).0
    }

    /// [`Self::forward`], with what mixtures chose, for [`Self::tape`].
    pub fn forward_with_choices(
        &self,
        x: Tensor<B, 2>,
        adapters: &LayerAdapters<B>,
        inputs: &LayerInputs<B>,
    ) -> (Tensor<B, 2>, Vec<Choice<B>>) {
        self.run(x, Call::new(self, adapters, inputs, Vec::new()))
    }

    fn run(&self, mut x: Tensor<B, 2>, mut call: Call<'_, B>) -> (Tensor<B, 2>, Vec<Choice<B>>) {
        for block in self.spec.blocks() {
            x = forward(block, x, &mut call).0;
        }
        (self.scaled(x), call.choices)
    }

    /// Times the layer's factor, where it has one; so its gradient.
    fn scaled(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.spec.factor() {
            Some(factor) => x * self.constants[factor.place].clone(),
            None => x,
        }
    }

    /// From the gradient `dy` of the layer's output to that of its input, or `None` if `wants_x` is false. Adds the
    /// gradients of adapters to `gradients`.
    pub fn backward(
        &self,
        tape: LayerTape<B>,
        adapters: &LayerAdapters<B>,
        inputs: &LayerInputs<B>,
        mut dy: Tensor<B, 2>,
        wants_x: bool,
        gradients: &mut LayerGradients<B>,
    ) -> Option<Tensor<B, 2>> {
        let call = Call::new(self, adapters, inputs, Vec::new());
        dy = self.scaled(dy);
        for (index, (block, tape)) in self.spec.blocks().iter().zip(tape.blocks).enumerate().rev() {
            dy = backward(block, tape, &call, dy, wants_x || index > 0, gradients)?;
        }
        Some(dy)
    }
}

/// A block's output, and its tape.
fn forward<B: KernelBackend>(
    block: &BlockSpec,
    x: Tensor<B, 2>,
    call: &mut Call<'_, B>,
) -> (Tensor<B, 2>, BlockTape<B>) {
    let mut sum: Option<Tensor<B, 2>> = None;
    let mut tapes = Vec::with_capacity(block.branches.len());
    let is_scaled = block.scale != 1.0;
    for branch in &block.branches {
        let normed = match &branch.pre {
            Some(norm) => call.norm(norm).forward(&x, None),
            None => x.clone(),
        };
        // A norm of the sum sees the branches alone.
        let residual = sum.as_ref().or(Some(&x).filter(|_| block.post.is_none()));
        let onto = residual.filter(|_| !is_scaled);
        let output = Output::Onto(onto.filter(|_| branch.post.is_none()));
        let (y, body) = body_forward(&branch.body, &normed, call, output);
        drop(normed);
        let Some(y) = y else { unreachable!("the output was asked for") };
        let (y, output) = match &branch.post {
            Some(norm) => (call.norm(norm).forward(&y, onto), Some(y)),
            None => (y, None),
        };
        let y = match residual.filter(|_| is_scaled) {
            Some(residual) => y * block.scale + residual.clone(),
            None => y,
        };
        sum = Some(y);
        tapes.push(BranchTape { body, output });
    }
    let sum = sum.unwrap_or_else(|| x.clone());
    let (y, sum) = match &block.post {
        Some(norm) => (call.norm(norm).forward(&sum, Some(&x)), Some(sum)),
        None => (sum, None),
    };
    (y, BlockTape { x, branches: tapes, sum })
}

/// The tape of a block, where nothing reads its output.
fn tape<B: KernelBackend>(block: &BlockSpec, x: Tensor<B, 2>, call: &mut Call<'_, B>) -> BlockTape<B> {
    if block.post.is_some() {
        return forward(block, x, call).1;
    }
    let of = |branch: &BranchSpec| {
        let normed = match &branch.pre {
            Some(norm) => call.norm(norm).forward(&x, None),
            None => x.clone(),
        };
        // The backward pass of a norm reads its input.
        let output = match &branch.post {
            Some(_) => Output::Onto(None),
            None => Output::Unread,
        };
        let (output, body) = body_forward(&branch.body, &normed, call, output);
        BranchTape { body, output }
    };
    let branches = block.branches.iter().map(of).collect();
    BlockTape { x, branches, sum: None }
}

/// dL/dx of a block, or `None` if it is not wanted.
fn backward<B: KernelBackend>(
    block: &BlockSpec,
    tape: BlockTape<B>,
    call: &Call<'_, B>,
    dy: Tensor<B, 2>,
    wants_x: bool,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let BlockTape { x, branches, sum } = tape;
    let scaled = match (&block.post, sum) {
        (Some(norm), Some(sum)) => Some(call.norm(norm).backward(&sum, dy.clone(), None)),
        _ => (block.scale != 1.0).then(|| dy.clone() * block.scale),
    };
    let above = scaled.as_ref().unwrap_or(&dy);
    let mut sum: Option<Tensor<B, 2>> = None;
    for (branch, tape) in block.branches.iter().zip(branches).rev() {
        let behind_norm = match (&branch.post, tape.output) {
            (Some(norm), Some(output)) => Some(call.norm(norm).backward(&output, above.clone(), None)),
            _ => None,
        };
        let normed = match &branch.pre {
            Some(norm) => call.norm(norm).forward(&x, None),
            None => x.clone(),
        };
        let upstream = Upstream { dy: behind_norm.as_ref().unwrap_or(above), wants_x };
        let found = body_backward(&branch.body, tape.body, &normed, call, upstream, gradients);
        drop(normed);
        let Some(dnormed) = found else { continue };
        let onto = sum.as_ref().unwrap_or(&dy);
        sum = Some(match &branch.pre {
            Some(norm) => call.norm(norm).backward(&x, dnormed, Some(onto)),
            None => dnormed + onto.clone(),
        });
    }
    sum
}

fn body_forward<B: KernelBackend>(
    body: &BodySpec,
    x: &Tensor<B, 2>,
    call: &mut Call<'_, B>,
    output: Output<'_, B>,
) -> (Option<Tensor<B, 2>>, BodyTape<B>) {
    match body {
        BodySpec::Attention(spec) => {
            let (y, tape) = attention::forward(spec, x, call, output);
            (y, BodyTape::Attention(Box::new(tape)))
        }
        BodySpec::Reading(spec) => {
            let (y, tape) = reading::forward(spec, x, call, output);
            (y, BodyTape::Reading(Box::new(tape)))
        }
        BodySpec::DeltaNet(spec) => {
            let (y, tape) = delta_net::forward(spec, x, call, output);
            (y, BodyTape::DeltaNet(Box::new(tape)))
        }
        BodySpec::ShortConv(spec) => {
            let (y, tape) = short_conv::forward(spec, x, call, output);
            (y, BodyTape::ShortConv(Box::new(tape)))
        }
        BodySpec::Gated(spec) => {
            let (y, tape) = gated::forward(spec, x, call, output);
            (y, BodyTape::Gated(Box::new(tape)))
        }
        BodySpec::Mixture(spec) => {
            let (y, tape) = mixture::forward(spec, x, call, output);
            (y, BodyTape::Mixture(Box::new(tape)))
        }
        BodySpec::Plain(spec) => {
            let (y, tape) = plain::forward(spec, x, call, output);
            (y, BodyTape::Plain(Box::new(tape)))
        }
        BodySpec::PerLayerInput(spec) => {
            let (y, tape) = per_layer::forward(spec, x, call, output);
            (y, BodyTape::PerLayerInput(Box::new(tape)))
        }
    }
}

fn body_backward<B: KernelBackend>(
    body: &BodySpec,
    tape: BodyTape<B>,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    upstream: Upstream<'_, B>,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    match (body, tape) {
        (BodySpec::Attention(spec), BodyTape::Attention(tape)) => {
            attention::backward(spec, *tape, x, call, upstream, gradients)
        }
        (BodySpec::Reading(spec), BodyTape::Reading(tape)) => {
            reading::backward(spec, *tape, x, call, upstream, gradients)
        }
        (BodySpec::DeltaNet(spec), BodyTape::DeltaNet(tape)) => {
            delta_net::backward(spec, *tape, x, call, upstream, gradients)
        }
        (BodySpec::ShortConv(spec), BodyTape::ShortConv(tape)) => {
            short_conv::backward(spec, *tape, x, call, upstream, gradients)
        }
        (BodySpec::Gated(spec), BodyTape::Gated(tape)) => {
            gated::backward(spec, *tape, x, call, upstream, gradients)
        }
        (BodySpec::Mixture(spec), BodyTape::Mixture(tape)) => {
            mixture::backward(spec, *tape, x, call, upstream, gradients)
        }
        (BodySpec::Plain(spec), BodyTape::Plain(tape)) => {
            plain::backward(spec, *tape, x, call, upstream, gradients)
        }
        (BodySpec::PerLayerInput(spec), BodyTape::PerLayerInput(tape)) => {
            per_layer::backward(spec, *tape, x, call, upstream, gradients)
        }
        _ => unreachable!("a tape is read by the body that wrote it"),
    }
}

#[cfg(test)]
mod tests;
