//! The memory plan of inference, made before loading: weights, the key-value cache of the longest conversation, and
//! the peak of a forward pass.
//!
//! Weights and passes are counted as for training (`train::memory`), without the backward pass; its workspace bounds
//! that of a forward pass.

use serde::Serialize;

use super::decode::PROMPT_CHUNK;
use crate::model::layers::cache_room;
use crate::train::memory::{DoesNotFit, Plan, Term, Workload};
use crate::train::placement::Streaming;
use crate::units::Bytes;

const CACHE: &str = "key-value cache";
const WORKSPACE: &str = "workspace";
/// Share of the total from which a term is worth reducing.
const WORTH_IT: f64 = 0.1;

/// The extent of the work that a model is loaded for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Largest number of tokens of prompt and answer together; 0: no answers.
    pub conversation: usize,
    /// Tokens of the longest row whose loss is measured; 0: none.
    pub row: usize,
    /// Conversations side by side, each with its own cache.
    pub lanes: usize,
}

/// The memory plan, term by term, for the model of `workload`, of which some layers may be fetched for each use; its
/// `tokens` are not used.
pub fn plan(workload: &Workload<'_>, extent: Extent, streaming: Option<&Streaming>) -> Vec<Term> {
    let spec = workload.spec;
    let room = cache_room(extent.conversation) as u64;
    // Keys and values. When a cache has been doubled, its previous halves stay in the pool.
    let row: u64 = spec.layers.iter().map(|layer| layer.state(workload.dtype)).sum();
    let caches = match extent.conversation {
        0 => 0,
        _ => {
            let outgrown = if room > cache_room(1) as u64 { room / 2 } else { 0 };
            let fixed: u64 = spec.layers.iter().map(|layer| layer.fixed_state(workload.dtype)).sum();
            extent.lanes as u64 * (row * (room + outgrown) + fixed)
        }
    };
    let tokens = (extent.conversation.min(PROMPT_CHUNK)).max(extent.row) as u64;
    let pass = Plan::pass_bytes(&Workload { tokens, ..*workload }, extent.row as u64);
    let logits = 2 * 4 * spec.vocab_size as u64 * extent.lanes.max(1) as u64;
    let adapters: u64 = workload.targets.iter().map(crate::adapter::target::Target::parameters).sum();
    // Loading a tensor: its values in f32, beside the quantized form.
    let loading = match workload.quantization {
        Some(_) => {
            let projections = spec.layers.iter().flat_map(|layer| layer.projections());
            4 * projections.map(|projection| projection.elements()).max().unwrap_or(0)
        }
        None => 0,
    };
    let mut terms = workload.placed_weight_terms(streaming);
    terms.extend([
        Term { name: "adapter", bytes: 4 * adapters },
        Term { name: CACHE, bytes: caches },
        Term { name: WORKSPACE, bytes: (pass + logits).max(loading.saturating_sub(caches)) },
        Term { name: "program and data", bytes: workload.program },
    ]);
    terms
}

/// The memory plan, if it fits into `budget` bytes.
///
/// # Errors
/// [`DoesNotFit`], with remedies.
pub fn require(
    workload: &Workload<'_>,
    extent: Extent,
    streaming: Option<&Streaming>,
    budget: u64,
) -> Result<Vec<Term>, DoesNotFit> {
    let terms = plan(workload, extent, streaming);
    let total = |terms: &[Term]| terms.iter().map(|term| term.bytes).sum::<u64>();
    if total(&terms) <= budget {
        return Ok(terms);
    }
    let mut ways = Vec::new();
    let smaller = Workload { quantization: Some(crate::quant::spec::Spec::USUAL), ..*workload };
    let needed = total(&plan(&smaller, extent, streaming));
    if workload.quantization.is_none() && needed < total(&terms) {
        ways.push(format!("add `--quantize nf4`, which needs {}", Bytes(needed)));
    }
    if workload.dtype.bytes() > 2 {
        ways.push("add `--compute-dtype bf16`, which halves what is not in 4 bits".to_owned());
    }
    let share = |name: &str| {
        let of = terms.iter().find(|term| term.name == name).map_or(0, |term| term.bytes);
        of as f64 / total(&terms) as f64
    };
    if share(CACHE) > WORTH_IT {
        ways.push("use shorter prompts and answers (`--max-new-tokens`)".to_owned());
    }
    if extent.row > 0 && share(WORKSPACE) > WORTH_IT {
        ways.push("use shorter rows".to_owned());
    }
    ways.push("raise `--memory-budget`".to_owned());
    let needed = Bytes(total(&terms));
    Err(DoesNotFit { subject: "the model", needed, budget: Bytes(budget), terms, ways })
}
