//! The memory of a run, planned before it begins: every term by name, and how many layers may keep what their backward
//! pass needs.
//!
//! The plan is for the largest micro-batch. Its terms follow from the shapes alone, but for the program's own memory,
//! which is measured; `tests/memory.rs` holds plan and measured peak within a tenth of each other.

use serde::Serialize;
use tune_kernels::memory;

use crate::adapter::projection::Projection;
use crate::adapter::target::Target;
use crate::adapter::whole::{Whole, WholeKind};
use crate::model::load::burn_dtype;
use crate::model::{DecoderSpec, FloatDtype};
use crate::quant;

/// What the processor's pool may hold, over what is in use at one time: it keeps buffers of the sizes that come again. The
/// pools of a GPU hold pages, of which some are half empty: a quarter, a sixteenth and less of its memory's quarter each,
/// a twelfth of its memory in all. That is no term of the plan but part of what a run leaves free (`device::SHARE`).
const POOL_SLACK: f64 = 1.125;

/// Largest resident set of this process so far in bytes; `None` where the system does not tell.
pub fn peak_resident_bytes() -> Option<u64> {
    kilobytes_field("/proc/self/status", "VmHWM:")
}

/// Resident set of this process in bytes; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    kilobytes_field("/proc/self/status", "VmRSS:")
}

/// Memory that can be had without swapping, in bytes; `None` where the system does not tell.
pub fn available_bytes() -> Option<u64> {
    kilobytes_field("/proc/meminfo", "MemAvailable:")
}

fn kilobytes_field(path: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kilobytes: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// What has to be held.
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
    /// The modules that are trained as a whole.
    pub wholes: &'a [Whole],
    /// Tokens of the largest micro-batch.
    pub tokens: u64,
    /// Memory of the process before anything is loaded, in bytes; 0 on a device with memory of its own.
    pub program: u64,
    /// Whether it is held on a GPU, whose ops hold other buffers than those of the processor.
    pub on_device: bool,
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
}

/// A plan that does not fit, even with every layer's forward pass run twice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the run needs {needed}, and {budget} may be used; the largest terms are {largest}. {}{quantize}, or raise \
     `train.memory_budget` if there is more",
    way_out(would_fit.as_deref())
)]
pub struct DoesNotFit {
    needed: crate::units::Bytes,
    budget: crate::units::Bytes,
    largest: String,
    quantize: &'static str,
    would_fit: Option<String>,
}

fn way_out(would_fit: Option<&str>) -> String {
    match would_fit {
        Some(settings) => format!("What would fit: {settings}. Or lower `data.max_seq_len`"),
        None => "Lower `train.micro_batch_size` or `data.max_seq_len`".to_owned(),
    }
}

impl DoesNotFit {
    /// Names settings that would fit.
    pub fn would_fit(self, settings: String) -> Self {
        Self { would_fit: Some(settings), ..self }
    }
}

/// The most tokens a micro-batch can have within `budget` bytes, be every layer's forward pass run twice; `None` if not
/// even one fits.
pub fn most_tokens(workload: &Workload<'_>, budget: u64) -> Option<u64> {
    let fits = |tokens: u64| Plan::keeping(&Workload { tokens, ..*workload }, 0).total() <= budget;
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
pub fn largest_terms(terms: &[Term]) -> String {
    let mut terms = terms.to_vec();
    terms.sort_by_key(|term| std::cmp::Reverse(term.bytes));
    let named =
        terms.iter().take(3).map(|term| format!("{} ({})", term.name, crate::units::Bytes(term.bytes)));
    named.collect::<Vec<_>>().join(", ")
}

impl Plan {
    /// Bytes of the largest moment of a forward pass over the workload's tokens, and of the loss of a row of `row`
    /// tokens after it.
    pub fn pass_bytes(workload: &Workload<'_>, row: u64) -> u64 {
        let Workload { spec, dtype, tokens, .. } = *workload;
        let hidden = 2 * tokens * (spec.hidden_size * dtype.bytes()) as u64;
        let loss_bytes = if workload.on_device { memory::loss_bytes_on_gpu } else { memory::loss_bytes };
        let loss = match row {
            0 => 0,
            row => loss_bytes(row, spec.hidden_size as u64, spec.vocab_size as u64, burn_dtype(dtype)),
        };
        ((hidden + workload.workspace().max(loss)) as f64 * POOL_SLACK) as u64
    }

    /// The plan that keeps as many layers as `budget` bytes allow.
    ///
    /// # Errors
    /// [`DoesNotFit`] if none is enough.
    pub fn new(workload: &Workload<'_>, budget: u64) -> Result<Self, DoesNotFit> {
        let layers = workload.spec.layers;
        let fits = |kept: usize| Self::keeping(workload, kept).total() <= budget;
        if fits(layers) {
            return Ok(Self::keeping(workload, layers));
        }
        // Each layer kept costs the same.
        let (mut low, mut high) = (0, layers);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if fits(middle) { low = middle } else { high = middle }
        }
        let plan = Self::keeping(workload, low);
        if plan.total() <= budget {
            return Ok(plan);
        }
        Err(DoesNotFit {
            needed: crate::units::Bytes(plan.total()),
            budget: crate::units::Bytes(budget),
            largest: largest_terms(&plan.terms),
            quantize: if workload.quantization.is_none() { ", add `[quantization.nf4]`" } else { "" },
            would_fit: None,
        })
    }

    /// The plan in which the top `kept_layers` layers keep what their backward pass needs.
    pub fn keeping(workload: &Workload<'_>, kept_layers: usize) -> Self {
        let Workload { spec, dtype, targets, wholes, tokens, program, .. } = *workload;
        let value = dtype.bytes() as u64;
        let layers = spec.layers;
        let whole: u64 = wholes.iter().map(Whole::parameters).sum();
        let trained = targets.iter().map(Target::parameters).sum::<u64>() + whole;
        let lowest = match wholes.iter().any(|whole| whole.kind == WholeKind::Embedding) {
            true => 0,
            false => targets.first().map_or(layers, |target| target.module.layer),
        };
        let kept = kept_layers.min(layers - lowest) as u64;
        let inputs = (layers - lowest) as u64 - kept;
        let hidden = tokens * spec.hidden_size as u64 * value;
        let activations = kept * workload.tape() + inputs * hidden + 2 * hidden;
        let again = if inputs > 0 { workload.tape() } else { 0 };
        let slack = |bytes: u64| match workload.on_device {
            true => bytes,
            false => (bytes as f64 * POOL_SLACK) as u64,
        };
        // The loss is done before the backward pass begins.
        let loss_bytes = if workload.on_device { memory::loss_bytes_on_gpu } else { memory::loss_bytes };
        let loss = loss_bytes(tokens, spec.hidden_size as u64, spec.vocab_size as u64, burn_dtype(dtype));
        // A trained head: some rows of logits three times over, and the gradient before it joins the sum.
        let loss = match wholes.iter().find(|whole| whole.kind == WholeKind::Head) {
            Some(head) => {
                loss + 4 * head.parameters() + memory::trained_loss_bytes(tokens, head.shape[0] as u64)
            }
            None => loss,
        };
        let workspace = workload.workspace() + again;
        let (loss, workspace) = if loss > workspace { (loss - workspace, workspace) } else { (0, workspace) };
        let mut terms = workload.weight_terms().to_vec();
        terms.extend([
            Term { name: "adapters", bytes: 4 * trained },
            Term { name: "optimizer", bytes: 8 * trained },
            Term { name: "gradients", bytes: 4 * trained },
            Term { name: "activations", bytes: slack(activations) },
            Term { name: "workspace", bytes: slack(workspace) },
            Term { name: "loss chunk", bytes: slack(loss) },
            Term { name: "program and data", bytes: program },
        ]);
        Self { terms, kept_layers: kept as usize, layers }
    }

    /// The plan as it is kept in the run folder.
    pub fn to_json(&self) -> String {
        let plan = serde_json::json!({
            "terms": self.terms,
            "total_bytes": self.total(),
            "kept_layers": self.kept_layers,
            "layers": self.layers,
        });
        format!("{plan:#}\n")
    }

    /// All terms together, in bytes.
    pub fn total(&self) -> u64 {
        self.terms.iter().map(|term| term.bytes).sum()
    }
}

impl Workload<'_> {
    /// What the base's weights take, loaded.
    pub fn weight_terms(&self) -> [Term; 3] {
        let (packed, scales, dense) = self.weights();
        [
            Term { name: "packed weights", bytes: packed },
            Term { name: "scales", bytes: scales },
            Term { name: "dense weights", bytes: dense },
        ]
    }

    /// Bytes of codes, of their scales, and of what stays in the compute dtype.
    fn weights(&self) -> (u64, u64, u64) {
        let (spec, value) = (self.spec, self.dtype.bytes() as u64);
        let (mut packed, mut scales, mut dense) = (0, 0, 0);
        for projection in Projection::ALL {
            let [out, input] = spec.projection_shape(projection).map(|length| length as u64);
            let weights = out * input;
            match self.quantization {
                Some(quant::spec::Spec::Nf4 { block_size, double_quant }) => {
                    let blocks = weights.div_ceil(block_size as u64);
                    packed += weights.div_ceil(2);
                    scales +=
                        if double_quant { blocks + 4 * blocks.div_ceil(256) + 1024 } else { 4 * blocks };
                }
                None => dense += value * weights,
            }
            dense += if spec.has_bias(projection) { value * out } else { 0 };
        }
        let hidden = spec.hidden_size as u64;
        let layers = spec.layers as u64;
        let head_norms = if spec.query_key_norm { 2 * spec.head_dim as u64 } else { 0 };
        let table = spec.vocab_size as u64 * hidden;
        let tables = if spec.tied { table } else { 2 * table };
        let dense = layers * (dense + value * (2 * hidden + head_norms)) + value * (tables + hidden);
        (layers * packed, layers * scales, dense)
    }

    /// Bytes that a kept layer holds for its backward pass: `model/layers` says of what.
    fn tape(&self) -> u64 {
        let spec = self.spec;
        let (queries, keys) = self.head_widths();
        // The layers of one run are adapted alike, or not at all.
        let last = self.targets.last().map(|target| target.module.layer);
        let adapted = || self.targets.iter().filter(|target| Some(target.module.layer) == last);
        let ranks: u64 = adapted().map(|target| target.rank as u64).sum();
        // A and B in the compute dtype, as the products of a GPU read them.
        let operands: u64 = match self.on_device {
            true => adapted()
                .map(|target| (target.rank * (target.module.in_features + target.module.out_features)) as u64)
                .sum(),
            false => 0,
        };
        let hidden = spec.hidden_size as u64;
        // Under DoRA the outputs of two projections as they are before their magnitudes; those of the others take the
        // place of what is kept anyway.
        let magnitudes = if self.uses_dora() { 2 * hidden } else { 0 };
        let values =
            magnitudes + 2 * hidden + 2 * queries + 2 * keys + 2 * spec.intermediate_size as u64 + ranks;
        let value = self.dtype.bytes() as u64;
        self.tokens * (values * value + 4 * spec.attention_heads as u64) + operands * value
    }

    fn uses_dora(&self) -> bool {
        self.targets.iter().any(|target| target.use_dora)
    }

    fn head_widths(&self) -> (u64, u64) {
        let head_dim = self.spec.head_dim as u64;
        (self.spec.attention_heads as u64 * head_dim, self.spec.key_value_heads as u64 * head_dim)
    }

    /// Bytes of the largest moment of a layer's backward pass, beyond tape and gradients.
    fn workspace(&self) -> u64 {
        if self.on_device {
            return self.workspace_on_gpu();
        }
        let (spec, value) = (self.spec, self.dtype.bytes() as u64);
        let packed = memory::packed_value_bytes(burn_dtype(self.dtype));
        let (hidden, intermediate) = (spec.hidden_size as u64, spec.intermediate_size as u64);
        let (queries, keys) = self.head_widths();
        // The gradient that comes from above, and the norm's output; under DoRA outputs that are made again.
        let around = 2 * hidden * value + if self.uses_dora() { 2 * intermediate * value } else { 0 };
        // Activation and its gradient, beside the packed gradient from above.
        let down = around + 2 * intermediate * value + hidden * packed;
        // The packed gradients of gate and up, beside that of their input.
        let gate_up = around + 2 * intermediate * packed + hidden * value;
        // Gradients of queries, keys and values, those of keys and values in f32 for each query head.
        let attention = around + (2 * queries + 2 * keys) * value + 8 * queries;
        let largest = down.max(gate_up).max(attention);
        let blocks = match self.quantization {
            Some(quant::spec::Spec::Nf4 { block_size, .. }) => 2 * hidden * intermediate / block_size as u64,
            None => 0,
        };
        self.tokens * largest + 4 * blocks + memory::panel_bytes(self.tokens, burn_dtype(self.dtype))
    }

    /// The same on a GPU, where operands are not packed, gradients of one input are added up in f32, and a weight is
    /// dequantized as a whole.
    fn workspace_on_gpu(&self) -> u64 {
        let (spec, value) = (self.spec, self.dtype.bytes() as u64);
        let (hidden, intermediate) = (spec.hidden_size as u64, spec.intermediate_size as u64);
        let (queries, keys) = self.head_widths();
        let around = 2 * hidden * value;
        let down = around + 2 * intermediate * value;
        // The sum before and after one more layer's part.
        let gate_up = around + 2 * intermediate * value + 8 * hidden;
        let attention = around + (2 * queries + 2 * keys) * value + 8 * queries + 8 * hidden;
        let largest = down.max(gate_up).max(attention);
        let scratch = match self.quantization {
            Some(_) => memory::weight_scratch_on_gpu(hidden * intermediate, burn_dtype(self.dtype)),
            None => 0,
        };
        self.tokens * largest + scratch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resident_process_has_memory() {
        if cfg!(target_os = "linux") {
            assert!(resident_bytes() <= peak_resident_bytes());
            assert!(available_bytes() > Some(0));
        }
    }
}
