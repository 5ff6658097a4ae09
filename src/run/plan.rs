//! The memory plan of an opened recipe, made before loading, and the choice of micro-batches that fit.

use tune_ranks::PIECE;
use tune_ranks::tree::Tree;

use super::Error;
use super::open::Opened;
use crate::adapter::saved::SavedModule;
use crate::adapter::target::Target;
use crate::device::{Device, SHARE};
use crate::model::FloatDtype;
use crate::model::fetch::Home;
use crate::model::spec::{Embeddings, Offload};
use crate::train::memory::{self, DoesNotFit, Plan, Term, Workload};
use crate::train::placement::{self, Placement};
use crate::train::process;
use crate::train::saved_inputs::SavedInputs;
use crate::units::{Bytes, Grouped};

/// The memory limit of the run: the recipe's budget, else the device's free memory, or this rank's part of it.
fn budget(opened: &Opened, device: &Device) -> u64 {
    let free = || device.memory_for_one_of(opened.ranks.on_device);
    opened.recipe.train.memory_budget.or_else(free).unwrap_or(u64::MAX)
}

pub(super) fn workload<'a>(
    opened: &'a Opened,
    device: &Device,
    dtype: FloatDtype,
    tokens: u64,
) -> Workload<'a> {
    let on_device = device.has_own_memory();
    Workload {
        spec: &opened.spec,
        quantization: opened.quantization,
        dtype,
        targets: &opened.targets,
        saved_modules: &opened.saved_modules,
        tokens,
        shares_prompts: opened.recipe.objective.compares_answers() && opened.spec.takes_prefixes(),
        program: match on_device {
            true => device.context_bytes(),
            false => process::resident_bytes().unwrap_or(0),
        },
        on_device,
        host_embeddings: false,
        host_inputs: false,
    }
}

/// The plan of a run whose largest micro-batch has `tokens` tokens.
///
/// # Errors
/// [`Error::Memory`] with remedies if it does not fit; [`Error::Piece`] if a buffer is too large for the device.
pub(super) fn plan(opened: &Opened, device: &Device, dtype: FloatDtype, tokens: u64) -> Result<Plan, Error> {
    let (workload, budget) = (workload(opened, device, dtype, tokens), budget(opened, device));
    workload.require_pieces(device.largest_buffer())?;
    let train = &opened.recipe.train;
    if train.host_memory_budget.is_some() && !workload.on_device {
        return Err(Error::Choice(
            "`train.host_memory_budget` bounds the host beside a GPU; on the CPU set `train.memory_budget` alone".to_owned(),
        ));
    }
    let model = &opened.recipe.model;
    let placed = match model.offload {
        Offload::None => chosen(opened, &workload, None, budget),
        Offload::Auto => chosen(opened, &workload, None, budget)
            .or_else(|_| chosen(opened, &workload, Some(model.offload), budget)),
        offload => chosen(opened, &workload, Some(offload), budget),
    };
    placed.map_err(|mut error| {
        if opened.ranks.on_device > 1 && train.memory_budget.is_none() {
            error.ways.push(format!(
                "start fewer than the {} ranks that share this memory",
                opened.ranks.on_device
            ));
        }
        if model.offload == Offload::None {
            error.ways.push("set `model.offload = \"auto\"`".to_owned());
        }
        if model.embeddings == Embeddings::Device && !opened.spec.tied {
            error.ways.push("set `model.embeddings = \"auto\"`".to_owned());
        }
        if train.saved_inputs == SavedInputs::Device && workload.on_device {
            error.ways.push("set `train.saved_inputs = \"auto\"`".to_owned());
        }
        let workload = placement::smallest(&workload, model.embeddings, train.saved_inputs);
        let seq_len = longest_group(opened).min(tokens).max(1);
        let sizes = (train.micro_batch_size, train.gradient_accumulation_steps);
        // Too much for the host is not a matter of tokens.
        let placement = match (&model.offload, workload.on_device) {
            _ if error.subject != memory::RUN => return error.into(),
            (Offload::None, _) => None,
            (_, true) => Some(Placement { home: Home::Host, resident_layers: 0 }),
            (_, false) => Some(Placement { home: Home::Disk, resident_layers: 0 }),
        };
        match memory::most_tokens_with(&workload, placement, budget) {
            None => error.into(),
            Some(most) => match smaller(sizes, most / seq_len) {
                Some((micro_batch_size, accumulation)) => error
                    .would_fit(format!(
                        "`train.micro_batch_size = {micro_batch_size}` with \
                         `train.gradient_accumulation_steps = {accumulation}` (which `--fit` chooses)"
                    ))
                    .into(),
                None => error
                    .would_fit(format!("`data.max_seq_len = {most}` with `train.micro_batch_size = 1`"))
                    .into(),
            },
        }
    })
}

/// The plan with embeddings and saved inputs where the recipe has them, or else as they fit: with all layers held, or
/// fetched as `offload` says.
fn chosen(
    opened: &Opened,
    workload: &Workload<'_>,
    offload: Option<Offload>,
    budget: u64,
) -> Result<Plan, DoesNotFit> {
    let recipe = &opened.recipe;
    placement::chosen(
        workload,
        recipe.model.embeddings,
        recipe.train.saved_inputs,
        |workload| match offload {
            None => require_host(opened, plan_within(opened, workload, budget, None)?),
            Some(offload) => streamed(opened, workload, offload, budget),
        },
    )
}

/// The plan that fetches layers for each use, from where the recipe says.
fn streamed(
    opened: &Opened,
    workload: &Workload<'_>,
    offload: Offload,
    budget: u64,
) -> Result<Plan, DoesNotFit> {
    let fixed = |home| Some(Placement { home, resident_layers: opened.recipe.model.resident_layers });
    let within = |placement| plan_within(opened, workload, budget, placement);
    let most = |home| {
        let resident_layers = placement::most_resident(workload, home, budget);
        within(Some(Placement { home, resident_layers }))
    };
    match (offload, workload.on_device) {
        // The processor's memory is the host's.
        (Offload::Host, false) => within(None),
        (Offload::Disk, _) => within(fixed(Home::Disk)),
        (Offload::Host, true) => require_host(opened, within(fixed(Home::Host))?),
        (Offload::Auto | Offload::None, false) => most(Home::Disk),
        (Offload::Auto | Offload::None, true) => match require_host(opened, most(Home::Host)?) {
            Ok(plan) => Ok(plan),
            Err(_) => most(Home::Disk),
        },
    }
}

/// # Errors
/// The host has no room for the layers and inputs that wait in its memory.
fn require_host(opened: &Opened, plan: Plan) -> Result<Plan, DoesNotFit> {
    let free =
        || process::available_bytes().map(|free| (free as f64 * SHARE) as u64 / opened.ranks.on_machine);
    let budget = opened.recipe.train.host_memory_budget.or_else(free).unwrap_or(u64::MAX);
    let terms = plan.host();
    let needed = terms.iter().map(|term| term.bytes).sum();
    if needed <= budget {
        return Ok(plan);
    }
    let ways = match &plan.streaming {
        Some(_) => {
            ["set `model.offload = \"disk\"`", "raise `model.resident_layers` or `train.host_memory_budget`"]
        }
        None => ["set `train.saved_inputs = \"device\"`", "raise `train.host_memory_budget`"],
    };
    Err(DoesNotFit {
        subject: "what waits in host memory",
        needed: Bytes(needed),
        budget: Bytes(budget),
        terms,
        ways: ways.map(str::to_owned).to_vec(),
    })
}

/// The plan within `budget` where layers are placed so, with what the run holds beside it.
fn plan_within(
    opened: &Opened,
    workload: &Workload<'_>,
    budget: u64,
    placement: Option<Placement>,
) -> Result<Plan, DoesNotFit> {
    let beside = beside(opened, workload);
    let bytes: u64 = beside.iter().map(|term| term.bytes).sum();
    let mut plan = Plan::with(workload, placement, budget.saturating_sub(bytes))?;
    plan.terms.extend(beside);
    Ok(plan)
}

/// What a run holds beside the model and its training: the adapter that an objective compares with where the run begins
/// with one, the sums of lanes, and what ranks exchange.
fn beside(opened: &Opened, workload: &Workload<'_>) -> Vec<Term> {
    let adapters = 4 * workload.targets.iter().map(Target::parameters).sum::<u64>();
    let trained = adapters + 4 * workload.saved_modules.iter().map(SavedModule::parameters).sum::<u64>();
    let ranks = opened.ranks.ranks;
    let has_reference = opened.recipe.objective.needs_reference() && opened.start.is_some();
    let held = Tree::<()>::held(opened.recipe.train.lanes / ranks) as u64;
    let is_local = opened.recipe.train.local_steps.is_some();
    // A GPU's tensors are exchanged through the host.
    let exchanged =
        if ranks > 1 && !workload.on_device { trained + 3 * trained.min(PIECE as u64) } else { 0 };
    let terms = [
        Term { name: "reference adapter", bytes: if has_reference { adapters } else { 0 } },
        Term { name: "sums of lanes", bytes: if is_local { 0 } else { held * trained } },
        // Adapter and moments of each, and those that a round begins with.
        Term { name: "workers", bytes: if is_local { 3 * (held + 1) * trained } else { 0 } },
        Term { name: "exchange of ranks", bytes: exchanged },
    ];
    terms.into_iter().filter(|term| term.bytes > 0).collect()
}

/// Micro-batch sizes up to the requested one, each with the accumulation that keeps their product, the optimizer step.
/// Largest first.
fn same_steps((micro_batch_size, accumulation): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    let sequences = micro_batch_size * accumulation;
    let sizes = (1..=micro_batch_size).rev().filter(move |size| sequences.is_multiple_of(*size));
    sizes.map(move |size| (size, sequences / size))
}

/// The largest of them with at most `most` sequences.
fn smaller(asked: (usize, usize), most: u64) -> Option<(usize, usize)> {
    same_steps(asked).find(|(size, _)| *size as u64 <= most)
}

/// Fixed cost of a pass over the weights, in tokens: reading, dequantizing and writing a weight once (4.5 bytes) takes
/// as long as a current GPU needs for two operations with it for this many tokens.
const TOKENS_OF_A_PASS: f64 = 170.0;

/// Cost of inputs that wait on the host, of all layers, in passes: a hidden state of an 8B model goes there at 24 GB/s and
/// back at 10, in a quarter of the time that a GPU with 100 TFLOP/s takes for a layer's forward pass.
const COST_OF_INPUTS: f64 = 0.25;

/// Relative cost of a token, for micro-batches of this many tokens and some recomputed layers: passes, each with its
/// share of the fixed cost.
fn cost(tokens: u64, plan: &Plan) -> f64 {
    let again = (plan.layers - plan.kept_layers) as f64 / plan.layers.max(1) as f64;
    let copied = if plan.host_inputs.is_some() { COST_OF_INPUTS * again } else { 0.0 };
    (2.0 + again + copied) * (1.0 + TOKENS_OF_A_PASS / tokens.max(1) as f64)
}

/// Chooses the fastest micro-batches that fit into memory, at most as large as the recipe's, and stores the present
/// budget in the recipe, so that the written recipe gives the same plan again. Small ones that save their activations
/// can be faster than large ones that recompute layers. `largest` is the number of tokens in the recipe's largest
/// micro-batch, and is updated for the chosen ones. Returns a description of the choice.
///
/// # Errors
/// [`Error::Memory`] or [`Error::Piece`] if a micro-batch of one sequence does not fit.
pub(super) fn fit(
    opened: &mut Opened,
    device: &Device,
    dtype: FloatDtype,
    largest: &mut u64,
) -> Result<String, Error> {
    let budget = budget(opened, device);
    if opened.recipe.objective.needs_baseline() {
        plan(opened, device, dtype, *largest)?;
        return Ok("micro_batch_size as in the recipe, since KTO's baseline depends on it".to_owned());
    }
    let longest = longest_group(opened).min(*largest).max(1);
    let train = &opened.recipe.train;
    let asked = (train.micro_batch_size, train.gradient_accumulation_steps);
    let tokens_of = |size: usize| (size as u64).saturating_mul(longest).min(*largest);
    let planned = |(size, accumulation): (usize, usize)| {
        let workload = workload(opened, device, dtype, tokens_of(size));
        workload.require_pieces(device.largest_buffer()).ok()?;
        let offload = match opened.recipe.model.offload {
            Offload::Auto | Offload::None => None,
            offload => Some(offload),
        };
        Some(((size, accumulation), chosen(opened, &workload, offload, budget).ok()?))
    };
    let by_cost = |((size, _), plan): &((usize, usize), Plan)| cost(tokens_of(*size), plan);
    // Among equals the largest, which comes first.
    let best = same_steps(asked).filter_map(planned).min_by(|a, b| by_cost(a).total_cmp(&by_cost(b)));
    let (chosen, plan) = match best {
        Some(best) => best,
        // Reported as without `--fit`, for a single sequence.
        None => ((1, asked.0 * asked.1), plan(opened, device, dtype, longest)?),
    };
    *largest = tokens_of(chosen.0);
    let change = match asked == chosen {
        true => "as in the recipe".to_owned(),
        false => format!("instead of {} and {}", asked.0, asked.1),
    };
    let train = &mut opened.recipe.train;
    (train.micro_batch_size, train.gradient_accumulation_steps) = chosen;
    if budget < u64::MAX {
        train.memory_budget = Some(budget);
    }
    Ok(format!(
        "micro_batch_size = {} and gradient_accumulation_steps = {}, {change}; {} of {} layers recomputed{}; {} planned of \
         {}, for {} tokens",
        chosen.0,
        chosen.1,
        plan.layers - plan.kept_layers,
        plan.layers,
        if plan.host_inputs.is_some() { ", their inputs in host memory" } else { "" },
        Bytes(plan.total()),
        Bytes(budget),
        Grouped(*largest),
    ))
}

/// Upper bound of the tokens in a micro-batch of the recipe, if the rows have not been read.
pub(super) fn most_tokens(opened: &Opened) -> u64 {
    let recipe = &opened.recipe;
    recipe.train.micro_batch_size as u64 * longest_group(opened)
}

/// Upper bound of the tokens in the documents of one row.
fn longest_group(opened: &Opened) -> u64 {
    let answers = if opened.recipe.objective.compares_answers() { 2 } else { 1 };
    answers * opened.recipe.data.max_seq_len as u64
}

#[cfg(test)]
mod tests {
    use super::{Plan, cost, smaller};

    /// Small micro-batches that save all activations are faster than large ones that recompute every layer, unless they
    /// are so small that reading the weights dominates.
    #[test]
    fn what_is_fastest_weighs_passes_against_layers_run_twice() {
        let plan = |kept_layers| Plan {
            terms: Vec::new(),
            kept_layers,
            layers: 32,
            streaming: None,
            host_embeddings: false,
            host_inputs: None,
        };
        assert!(cost(4096, &plan(32)) < cost(4096, &plan(16)));
        assert!(cost(2048, &plan(32)) < cost(16_384, &plan(0)));
        assert!(cost(2048, &plan(32)) > cost(4096, &plan(32)));
        assert!(cost(64, &plan(32)) > cost(1024, &plan(0)));
        let copied = Plan { host_inputs: Some(1), ..plan(16) };
        assert!(cost(2048, &copied) > cost(2048, &plan(16)) && cost(2048, &copied) < cost(2048, &plan(8)));
    }

    #[test]
    fn smaller_micro_batches_make_the_same_step() {
        assert_eq!(smaller((4, 4), 100), Some((4, 4)));
        assert_eq!(smaller((4, 4), 3), Some((2, 8)));
        assert_eq!(smaller((6, 1), 5), Some((3, 2)));
        assert_eq!(smaller((5, 2), 4), Some((2, 5)));
        assert_eq!(smaller((7, 1), 6), Some((1, 7)));
        assert_eq!(smaller((4, 4), 0), None);
    }
}
