//! The linear projections of a decoder layer as adapters see them: the role of each, its place in the layer, and the
//! adapters and gradients of one layer by that place.
//!
//! A layer lists its projections in the order of use (`model::parts`); a *slot* is a place in that list. Refuses to
//! know which projections a recipe adapts (`target`) and where the numbers of an adapter come from (`lora`).

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear::{Lora, LoraGradient};

use super::dora::Dora;

/// The place of a projection in its layer's list, from 0; also its number in a dropout key.
pub type Slot = usize;

/// What a projection does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Hidden state to queries.
    Query,
    /// Hidden state to keys.
    Key,
    /// Hidden state to values.
    Value,
    /// Attention output to hidden state.
    Output,
    /// Hidden state to the gate of the feed-forward block.
    Gate,
    /// Hidden state to the values that the gate multiplies.
    Up,
    /// Feed-forward block back to hidden state.
    Down,
    /// Hidden state to queries, keys and values, stacked in this order.
    QueryKeyValue,
    /// Hidden state to gate and up, stacked in this order.
    GateUp,
    /// Hidden state to what a recurrent mixer's convolution mixes.
    Mixed,
    /// Hidden state to the gate of its output, or of attention's.
    MixerGate,
    /// Hidden state to the strength of its writes.
    Write,
    /// Hidden state to its decay.
    Decay,
    /// Its output to hidden state.
    MixerOutput,
    /// Hidden state to the gate of an expert.
    ExpertGate,
    /// Hidden state to the values that the gate multiplies.
    ExpertUp,
    /// An expert back to hidden state.
    ExpertDown,
    /// Hidden state to the gate of a layer's part of the embeddings by layer.
    PartGate,
    /// That part to hidden state.
    PartOutput,
}

impl Role {
    /// The names that Hugging Face checkpoints give the last component of a module path.
    const NAMES: [(&'static str, Self); 32] = [
        ("q_proj", Self::Query),
        ("k_proj", Self::Key),
        ("v_proj", Self::Value),
        ("o_proj", Self::Output),
        ("gate_proj", Self::Gate),
        ("up_proj", Self::Up),
        ("down_proj", Self::Down),
        ("qkv_proj", Self::QueryKeyValue),
        ("gate_up_proj", Self::GateUp),
        ("in_proj_qkv", Self::Mixed),
        ("in_proj", Self::Mixed),
        ("w1", Self::Gate),
        ("w3", Self::Up),
        ("w2", Self::Down),
        ("in_proj_z", Self::MixerGate),
        ("in_proj_b", Self::Write),
        ("in_proj_a", Self::Decay),
        ("out_proj", Self::MixerOutput),
        ("per_layer_input_gate", Self::PartGate),
        ("per_layer_projection", Self::PartOutput),
        ("input_linear", Self::GateUp),
        ("output_linear", Self::Down),
        ("query_key_value", Self::QueryKeyValue),
        ("dense", Self::Output),
        ("c_fc", Self::Up),
        ("fc1", Self::Up),
        ("fc_in", Self::Up),
        ("dense_h_to_4h", Self::Up),
        ("c_proj", Self::Down),
        ("fc2", Self::Down),
        ("fc_out", Self::Down),
        ("dense_4h_to_h", Self::Down),
    ];

    /// The role of a module by the last component of its path, for use without a model.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, role)| *role)
    }

    /// The role in an expert of what has this role in a feed-forward block.
    pub(super) fn of_expert(self) -> Option<Self> {
        match self {
            Self::Gate => Some(Self::ExpertGate),
            Self::Up => Some(Self::ExpertUp),
            Self::Down => Some(Self::ExpertDown),
            _ => None,
        }
    }

    /// Whether it belongs to an expert that some tokens pass and others do not.
    pub fn is_routed(self) -> bool {
        matches!(self, Self::ExpertGate | Self::ExpertUp | Self::ExpertDown)
    }
}

/// The adapter of one projection.
#[derive(Clone, Debug)]
pub struct Adapter<T: KernelBackend> {
    /// A and B.
    pub lora: Lora<T>,
    /// Magnitudes, under DoRA.
    pub dora: Option<Dora<T>>,
}

impl<T: KernelBackend> From<Lora<T>> for Adapter<T> {
    fn from(lora: Lora<T>) -> Self {
        Self { lora, dora: None }
    }
}

/// The adapters of one decoder layer by slot.
#[derive(Clone, Debug)]
pub struct LayerAdapters<T: KernelBackend>(Vec<Option<Adapter<T>>>);

impl<T: KernelBackend> LayerAdapters<T> {
    /// A layer without adapters: the base model as it is.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// The adapter on the projection in `slot`, if it has one.
    pub fn get(&self, slot: Slot) -> Option<&Adapter<T>> {
        self.0.get(slot)?.as_ref()
    }

    /// Puts an adapter on the projection in `slot`.
    pub fn set(&mut self, slot: Slot, adapter: Adapter<T>) {
        grow(&mut self.0, slot);
        self.0[slot] = Some(adapter);
    }

    /// The same adapters with another dropout on each input, `dropout` of the slot.
    #[must_use]
    pub(super) fn with_dropout(
        &self,
        dropout: impl Fn(Slot) -> Option<tune_kernels::dropout::Dropout>,
    ) -> Self {
        let mut adapters = self.clone();
        for (slot, adapter) in adapters.0.iter_mut().enumerate() {
            if let Some(adapter) = adapter {
                adapter.lora.dropout = dropout(slot);
            }
        }
        adapters
    }
}

/// The adapter gradients of one decoder layer by slot, summed over micro-batches.
#[derive(Clone, Debug)]
pub struct LayerGradients<B: KernelBackend> {
    pairs: Vec<Option<LoraGradient<B>>>,
    magnitudes: Vec<Option<Tensor<B, 2>>>,
    /// Of a mixture, how many tokens were sent to each expert.
    load: Vec<u64>,
}

impl<B: KernelBackend> Default for LayerGradients<B> {
    fn default() -> Self {
        Self { pairs: Vec::new(), magnitudes: Vec::new(), load: Vec::new() }
    }
}

impl<B: KernelBackend> LayerGradients<B> {
    /// The gradient of the A and B in `slot`; `None` before the first micro-batch, and without an adapter.
    pub fn get(&self, slot: Slot) -> Option<&LoraGradient<B>> {
        self.pairs.get(slot)?.as_ref()
    }

    /// The gradient of the magnitudes in `slot`, `[1, out]`; `None` likewise.
    pub fn magnitude(&self, slot: Slot) -> Option<&Tensor<B, 2>> {
        self.magnitudes.get(slot)?.as_ref()
    }

    /// How many tokens were sent to each expert; empty where the layer has none.
    pub fn load(&self) -> &[u64] {
        &self.load
    }

    /// Counts tokens that were sent to one of `experts` experts.
    pub fn count_tokens(&mut self, expert: usize, tokens: usize, experts: usize) {
        self.load.resize(experts, 0);
        self.load[expert] += tokens as u64;
    }

    /// Adds to the gradient of the magnitudes in `slot`.
    pub fn add_magnitude(&mut self, slot: Slot, gradient: Tensor<B, 2>) {
        grow(&mut self.magnitudes, slot);
        let sum = &mut self.magnitudes[slot];
        *sum = Some(match sum.take() {
            Some(sum) => sum + gradient,
            None => gradient,
        });
    }

    /// Takes sums out, to be added to.
    pub fn take(&mut self, slots: &[Slot]) -> Vec<Option<LoraGradient<B>>> {
        slots.iter().map(|slot| self.pairs.get_mut(*slot).and_then(Option::take)).collect()
    }

    /// Puts sums back.
    pub fn put(&mut self, slots: &[Slot], sums: Vec<Option<LoraGradient<B>>>) {
        for (slot, sum) in slots.iter().zip(sums) {
            grow(&mut self.pairs, *slot);
            self.pairs[*slot] = sum;
        }
    }
}

/// Makes room for `slot`.
fn grow<T>(slots: &mut Vec<Option<T>>, slot: Slot) {
    if slots.len() <= slot {
        slots.resize_with(slot + 1, || None);
    }
}

/// A projection of a model, as target patterns see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Module path in the Hugging Face model (`model.layers.3.self_attn.q_proj`).
    pub path: String,
    /// Decoder layer, from 0.
    pub layer: usize,
    /// What it does in that layer.
    pub role: Role,
    /// Its place in that layer; the number of the role if the model is not known.
    pub slot: Slot,
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// Of gate and up of an expert: whether their rows take turns where both are one parameter.
    pub alternates: bool,
}

impl Module {
    /// The part of the path behind the layer's number (`self_attn.q_proj`): the same in every layer.
    pub fn path_in_layer(&self) -> &str {
        self.path.split_once(&format!(".{}.", self.layer)).map_or(&self.path, |(_, inside)| inside)
    }

    /// The expert that it belongs to, of those that some tokens pass.
    pub fn expert(&self) -> Option<usize> {
        let (_, after) = self.path.rsplit_once(".experts.").filter(|_| self.role.is_routed())?;
        after.split('.').next()?.parse().ok()
    }

    /// The last component of the path (`q_proj`).
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}
