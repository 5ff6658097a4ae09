//! The memory of a run, planned before it begins: every term by name, and how many layers may save what their backward
//! pass needs.
//!
//! The plan is for the largest micro-batch, and sums what the parts of the layers state. Its terms follow from the shapes
//! alone, except the program's own memory, which is measured; `tests/memory.rs` holds plan and measured peak within a tenth of each other.

use std::ops::Range;
use std::path::Path;

use serde::Serialize;
use tune_kernels::memory;

use super::placement::{Placement, Streaming};

use crate::adapter::saved::{SavedKind, SavedModule};
use crate::adapter::target::Target;
use crate::model::dtype::burn_dtype;
use crate::model::load::Layout;
use crate::model::parts::{Load, PerLayerSpec, WeightBytes, Workspace};
use crate::model::{DecoderSpec, FloatDtype};
use crate::quant;
use crate::units::Bytes;

/// What the processor's pool may hold, over what is in use at one time: it keeps buffers of the sizes that come again.
const POOL_SLACK: f64 = 1.125;
/// The same of a GPU's, whose buffers have the sizes of their tensors.
const POOL_SLACK_OF_GPU: f64 = 1.05;

/// What memory is planned for.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// How its projections are stored; `None`: in the compute dtype.
    pub quantization: Option<quant::spec::Spec>,
    /// What the matmuls run in.
    pub dtype: FloatDtype,
    /// The adapted projections.
    pub targets: &'a [Target],
    /// The modules to save.
    pub saved_modules: &'a [SavedModule],
    /// Tokens of the largest micro-batch.
    pub tokens: u64,
    /// Whether the two answers of a pair share their prompt's tokens.
    pub shares_prompts: bool,
    /// Memory of the process before anything is loaded, in bytes; on a device with memory of its own what its driver takes
    /// there for a process.
    pub program: u64,
    /// Whether it is held on a GPU, whose ops hold other buffers than those of the processor.
    pub on_device: bool,
    /// Whether the table of token embeddings stays in the checkpoint's files. One that is the output head too does not.
    pub host_embeddings: bool,
    /// Whether the inputs of layers that are run again wait in host memory beside a GPU.
    pub host_inputs: bool,
}

/// One term of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Term {
    /// What it is.
    pub name: &'static str,
    /// Its size.
    pub bytes: u64,
}

/// What a run will hold at its largest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// All terms, in the order they come to be.
    pub terms: Vec<Term>,
    /// Layers that keep what their backward pass needs; the forward pass of the others is run again.
    pub kept_layers: usize,
    /// Layers in all.
    pub layers: usize,
    /// The layers that are fetched for each use; `None`: all are held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streaming: Option<Streaming>,
    /// Whether the token embeddings are off the device.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_embeddings: bool,
    /// Bytes of layer inputs that wait in host memory; `None`: they wait on the device, or no layer is run again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_inputs: Option<u64>,
}

/// The subject of a plan for a run.
pub const RUN: &str = "the run";

/// A memory plan that exceeds its budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject} needs {needed}; the budget is {budget}. Largest terms: {}", largest_terms(terms))]
pub struct DoesNotFit {
    /// What the plan is for: `the run` or `the model`.
    pub subject: &'static str,
    /// Total of the plan.
    pub needed: Bytes,
    /// Memory that may be used.
    pub budget: Bytes,
    /// The terms of the plan.
    pub terms: Vec<Term>,
    /// Remedies, the best first.
    pub ways: Vec<String>,
}

impl DoesNotFit {
    /// Puts settings that fit in front of the other remedies.
    pub fn would_fit(mut self, settings: String) -> Self {
        self.ways.insert(0, format!("set {settings}"));
        self
    }
}

/// The most tokens a micro-batch can have within `budget` bytes, be every layer's forward pass run twice; `None` if not
/// even one fits.
pub fn most_tokens(workload: &Workload<'_>, budget: u64) -> Option<u64> {
    most_tokens_with(workload, None, budget)
}

/// [`most_tokens`], where layers are placed so.
pub fn most_tokens_with(workload: &Workload<'_>, placement: Option<Placement>, budget: u64) -> Option<u64> {
    let fits = |tokens: u64| Plan::placed(&Workload { tokens, ..*workload }, 0, placement).total() <= budget;
    if !fits(1) {
        return None;
    }
    // Every term grows with the tokens, but for steps that rounding hides.
    let (mut low, mut high) = (1, 1 << 32);
    while high - low > 1 {
        let middle = u64::midpoint(low, high);
        if fits(middle) { low = middle } else { high = middle }
    }
    Some(low)
}

/// The three largest terms, by name and size.
fn largest_terms(terms: &[Term]) -> String {
    let mut terms = terms.to_vec();
    terms.sort_by_key(|term| std::cmp::Reverse(term.bytes));
    let named = terms.iter().take(3).map(|term| format!("{} ({})", term.name, Bytes(term.bytes)));
    named.collect::<Vec<_>>().join(", ")
}

impl Plan {
    /// Bytes of the largest moment of a forward pass over the workload's tokens, and of the loss of a row of `row`
    /// tokens after it.
    pub fn pass_bytes(workload: &Workload<'_>, row: u64) -> u64 {
        let Workload { spec, dtype, tokens, .. } = *workload;
        let hidden = tokens * (2 * spec.hidden_size as u64 + spec.input_numbers()) * dtype.bytes() as u64;
        let loss_bytes = if workload.on_device { memory::loss_bytes_on_gpu } else { memory::loss_bytes };
        let loss = match row {
            0 => 0,
            row => loss_bytes(row, spec.hidden_size as u64, spec.vocab_size as u64, burn_dtype(dtype)),
        };
        workload.pooled(hidden + workload.workspace().max(loss))
    }

    /// The plan that keeps as many layers as `budget` bytes allow.
    ///
    /// # Errors
    /// [`DoesNotFit`] if none is enough.
    pub fn new(workload: &Workload<'_>, budget: u64) -> Result<Self, DoesNotFit> {
        Self::with(workload, None, budget)
    }

    /// The plan that keeps as many layers as `budget` bytes allow, where layers are placed so.
    ///
    /// # Errors
    /// [`DoesNotFit`] if none is enough.
    pub fn with(
        workload: &Workload<'_>,
        placement: Option<Placement>,
        budget: u64,
    ) -> Result<Self, DoesNotFit> {
        let plans =
            (0..=workload.spec.layers.len()).rev().map(|kept| Self::placed(workload, kept, placement));
        if let Some(plan) = plans.into_iter().find(|plan| plan.total() <= budget) {
            return Ok(plan);
        }
        let plan = Self::placed(workload, 0, placement);
        let mut ways = vec!["lower `train.micro_batch_size` or `data.max_seq_len`".to_owned()];
        if workload.quantization.is_none() {
            ways.push("add `[quantization.nf4]`".to_owned());
        }
        ways.push("raise `train.memory_budget`".to_owned());
        let (needed, budget) = (Bytes(plan.total()), Bytes(budget));
        Err(DoesNotFit { subject: RUN, needed, budget, terms: plan.terms, ways })
    }

    /// The plan in which the top `kept_layers` layers keep what their backward pass needs.
    pub fn keeping(workload: &Workload<'_>, kept_layers: usize) -> Self {
        Self::placed(workload, kept_layers, None)
    }

    /// [`Self::keeping`], where layers are placed so.
    pub fn placed(workload: &Workload<'_>, kept_layers: usize, placement: Option<Placement>) -> Self {
        let Workload { spec, dtype, targets, saved_modules, tokens, program, .. } = *workload;
        let value = dtype.bytes() as u64;
        let layers = spec.layers.len();
        let saved: u64 = saved_modules.iter().map(SavedModule::parameters).sum();
        let trained = targets.iter().map(Target::parameters).sum::<u64>() + saved;
        let lowest = match saved_modules.iter().any(|saved| saved.kind == SavedKind::Embedding) {
            true => 0,
            false => targets.first().map_or(layers, |target| target.module.layer),
        };
        let kept = kept_layers.min(layers - lowest);
        let (recomputed, saving) = (lowest..layers - kept, layers - kept..layers);
        let hidden = tokens * spec.hidden_size as u64 * value;
        let saved: u64 = saving.map(|layer| workload.saved(layer)).sum();
        let inputs = tokens * spec.input_numbers() * value;
        let again_inputs = recomputed.len() as u64;
        let host_inputs =
            (workload.host_inputs && workload.on_device && again_inputs > 0).then_some(again_inputs * hidden);
        // One of those on the host is here while its layer is run.
        let held_inputs = if host_inputs.is_some() { 1 } else { again_inputs };
        let activations = saved + inputs + held_inputs * hidden + 2 * hidden;
        // What the layers at the top saved is free again before the first of the others is run again.
        let again = recomputed.map(|layer| workload.saved(layer)).max().unwrap_or(0).saturating_sub(saved);
        // The loss is done before the backward pass begins.
        let loss_bytes = if workload.on_device { memory::loss_bytes_on_gpu } else { memory::loss_bytes };
        let loss = loss_bytes(tokens, spec.hidden_size as u64, spec.vocab_size as u64, burn_dtype(dtype));
        // A trained head: some rows of logits three times over, and the gradient before it joins the sum.
        let loss = match saved_modules.iter().find(|saved| saved.kind == SavedKind::Head) {
            Some(head) => {
                loss + 4 * head.parameters() + memory::trained_loss_bytes(tokens, head.shape[0] as u64)
            }
            None => loss,
        };
        let workspace = workload.workspace() + again;
        let (loss, workspace) = if loss > workspace { (loss - workspace, workspace) } else { (0, workspace) };
        let streaming = placement.map(|placement| Streaming::of(workload, placement));
        let mut terms = workload.placed_weight_terms(streaming.as_ref());
        terms.extend([
            Term { name: "adapters", bytes: 4 * trained },
            Term { name: "optimizer", bytes: 8 * trained },
            Term { name: "gradients", bytes: 4 * trained },
            Term { name: "activations", bytes: workload.pooled(activations) },
            Term { name: "workspace", bytes: workload.pooled(workspace) },
            Term { name: "loss chunk", bytes: workload.pooled(loss) },
            Term {
                name: if workload.on_device { "driver's context" } else { "program and data" },
                bytes: program,
            },
        ]);
        let host_embeddings = workload.host_embeddings && !spec.tied;
        Self { terms, kept_layers: kept, layers, streaming, host_embeddings, host_inputs }
    }

    /// The plan as it is kept in the run folder.
    pub fn to_json(&self) -> String {
        let mut plan = serde_json::json!({
            "terms": self.terms,
            "total_bytes": self.total(),
            "kept_layers": self.kept_layers,
            "layers": self.layers,
        });
        if let Some(streaming) = &self.streaming {
            plan["streaming"] = serde_json::json!(streaming);
        }
        if self.host_embeddings {
            plan["embeddings"] = "host".into();
        }
        if let Some(bytes) = self.host_inputs {
            plan["host_inputs_bytes"] = bytes.into();
        }
        format!("{plan:#}\n")
    }

    /// What waits in host memory beside a GPU.
    pub fn host(&self) -> Vec<Term> {
        let mut host = self.streaming.as_ref().map_or_else(Vec::new, |streaming| streaming.host.clone());
        host.extend(self.host_inputs.map(|bytes| Term { name: "layer inputs", bytes }));
        host
    }

    /// Layers that are held on the device.
    pub fn resident_layers(&self) -> usize {
        self.streaming.as_ref().map_or(self.layers, |streaming| streaming.resident_layers)
    }

    /// What loading needs to know, with the folder of packed weights where there is one.
    pub fn layout<'a>(&self, packed: Option<&'a Path>) -> Layout<'a> {
        let streaming = self.streaming.as_ref().map(|streaming| streaming.load(packed));
        Layout { host_embeddings: self.host_embeddings, streaming }
    }

    /// All terms together, in bytes.
    pub fn total(&self) -> u64 {
        self.terms.iter().map(|term| term.bytes).sum()
    }
}

impl Workload<'_> {
    /// What the base's weights take, loaded.
    pub fn weight_terms(&self) -> [Term; 3] {
        self.terms_of_weights(0..self.spec.layers.len())
    }

    /// [`Self::weight_terms`] where some layers are fetched for each use.
    pub fn placed_weight_terms(&self, streaming: Option<&Streaming>) -> Vec<Term> {
        let Some(streaming) = streaming else { return self.weight_terms().to_vec() };
        let layers = self.spec.layers.len();
        let mut terms = self.terms_of_weights(layers - streaming.resident_layers..layers).to_vec();
        terms.push(Term { name: "layers in transit", bytes: streaming.transit_bytes() });
        terms
    }

    /// What the base's weights take with these layers alone.
    fn terms_of_weights(&self, layers: Range<usize>) -> [Term; 3] {
        let (spec, value) = (self.spec, self.dtype.bytes() as u64);
        let layers = spec.layers.iter().skip(layers.start).take(layers.len());
        let layers = layers.map(|layer| layer.weights(self.quantization, self.dtype));
        let WeightBytes { packed, scales, dense } = layers.sum();
        let table = (spec.vocab_size * spec.hidden_size) as u64;
        let tables = if spec.tied || self.host_embeddings { table } else { 2 * table };
        let bias = if spec.head_bias { spec.vocab_size as u64 } else { 0 };
        let per_layer = |own: &PerLayerSpec| own.numbers() * spec.hidden_size + own.norm.elements();
        let per_layer = spec.per_layer.as_ref().map_or(0, per_layer) as u64;
        let dense = dense + value * (tables + bias + per_layer + spec.final_norm.elements() as u64);
        [
            Term { name: "packed weights", bytes: packed },
            Term { name: "scales", bytes: scales },
            Term { name: "dense weights", bytes: dense },
        ]
    }

    /// What pools hold of buffers that come and go, `bytes` of them at the largest moment.
    fn pooled(&self, bytes: u64) -> u64 {
        (bytes as f64 * if self.on_device { POOL_SLACK_OF_GPU } else { POOL_SLACK }) as u64
    }

    /// What a layer is run on.
    fn load(&self, layer: usize) -> Load<'_> {
        let first = self.targets.partition_point(|target| target.module.layer < layer);
        let last = self.targets.partition_point(|target| target.module.layer <= layer);
        Load {
            tokens: self.tokens,
            dtype: self.dtype,
            quantization: self.quantization,
            shares_prompts: self.shares_prompts,
            on_device: self.on_device,
            targets: &self.targets[first..last],
        }
    }

    /// Bytes that a layer saves for its backward pass.
    fn saved(&self, layer: usize) -> u64 {
        self.spec.layers[layer].saved(&self.load(layer))
    }

    /// Bytes of the largest moment of a layer's backward pass, beyond what was saved and gradients.
    fn workspace(&self) -> u64 {
        let layers = self.spec.layers.iter().enumerate();
        let largest = layers.map(|(index, layer)| layer.workspace(&self.load(index)));
        let Workspace { activations, scratch } = largest.fold(Workspace::default(), Workspace::max);
        let panels = match self.on_device {
            true => 0,
            false => memory::panel_bytes(self.tokens, burn_dtype(self.dtype)),
        };
        activations + scratch + panels
    }
}
