//! The memory plan of an opened recipe, before anything is loaded; and micro-batches chosen so that it fits.

use super::Error;
use super::open::Opened;
use crate::device::Device;
use crate::model::FloatDtype;
use crate::train::memory::{self, Plan, Workload};
use crate::units::{Bytes, Grouped};

/// Memory that the run may take: what the recipe allows, else what the device has free.
fn budget(opened: &Opened, device: &Device) -> u64 {
    opened.recipe.train.memory_budget.or_else(|| device.memory_for_a_run()).unwrap_or(u64::MAX)
}

fn workload<'a>(opened: &'a Opened, device: &Device, dtype: FloatDtype, tokens: u64) -> Workload<'a> {
    let on_device = device.has_own_memory();
    Workload {
        spec: &opened.spec,
        quantization: opened.quantization,
        dtype,
        targets: &opened.targets,
        wholes: &opened.wholes,
        tokens,
        program: if on_device { 0 } else { memory::resident_bytes().unwrap_or(0) },
        on_device,
    }
}

/// The plan of a run whose largest micro-batch has `tokens` tokens.
///
/// # Errors
/// [`Error::Memory`] if it does not fit, with what would.
pub(super) fn plan(opened: &Opened, device: &Device, dtype: FloatDtype, tokens: u64) -> Result<Plan, Error> {
    let (workload, budget) = (workload(opened, device, dtype, tokens), budget(opened, device));
    Plan::new(&workload, budget).map_err(|error| {
        let train = &opened.recipe.train;
        let seq_len = (opened.recipe.data.max_seq_len as u64).min(tokens).max(1);
        let sizes = (train.micro_batch_size, train.gradient_accumulation_steps);
        match memory::most_tokens(&workload, budget) {
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

/// The largest micro-batch of at most `most` sequences, and not above what is asked for, that makes the same optimizer
/// step: micro-batches times accumulation stay what they are.
fn smaller((micro_batch_size, accumulation): (usize, usize), most: u64) -> Option<(usize, usize)> {
    let sequences = micro_batch_size * accumulation;
    let fits = |size: &usize| sequences.is_multiple_of(*size) && *size as u64 <= most;
    let size = (1..=micro_batch_size).rev().find(fits)?;
    Some((size, sequences / size))
}

/// Lets micro-batches be as large as memory allows, at most as large as the recipe says, and the budget be what it is
/// now, so that the recipe as it is written down plans the same again. `largest` is the tokens of the largest micro-batch
/// as the recipe has them, and becomes that of those chosen. Tells what was chosen.
///
/// # Errors
/// [`Error::Memory`] if a micro-batch of one sequence does not fit.
pub(super) fn fit(
    opened: &mut Opened,
    device: &Device,
    dtype: FloatDtype,
    largest: &mut u64,
) -> Result<String, Error> {
    let budget = budget(opened, device);
    let workload = workload(opened, device, dtype, *largest);
    let longest = (opened.recipe.data.max_seq_len as u64).min(*largest).max(1);
    let train = &opened.recipe.train;
    let asked = (train.micro_batch_size, train.gradient_accumulation_steps);
    let (chosen, plan) = match Plan::new(&workload, budget) {
        Ok(plan) => (asked, plan),
        Err(_) => {
            let most = memory::most_tokens(&workload, budget).unwrap_or(0) / longest;
            let chosen = smaller(asked, most).unwrap_or((1, asked.0 * asked.1));
            *largest = chosen.0 as u64 * longest;
            (chosen, Plan::new(&Workload { tokens: *largest, ..workload }, budget)?)
        }
    };
    let change = match asked == chosen {
        true => "as the recipe says".to_owned(),
        false => format!("not {} and {}", asked.0, asked.1),
    };
    let train = &mut opened.recipe.train;
    (train.micro_batch_size, train.gradient_accumulation_steps) = chosen;
    if budget < u64::MAX {
        train.memory_budget = Some(budget);
    }
    Ok(format!(
        "micro_batch_size = {} and gradient_accumulation_steps = {}, {change}; {} of {} layers run forward twice; {} \
         planned of {}, for {} tokens",
        chosen.0,
        chosen.1,
        plan.layers - plan.kept_layers,
        plan.layers,
        Bytes(plan.total()),
        Bytes(budget),
        Grouped(*largest),
    ))
}

/// The most tokens that a micro-batch of the recipe can have, where the rows have not been looked at.
pub(super) fn most_tokens(opened: &Opened) -> u64 {
    let recipe = &opened.recipe;
    recipe.train.micro_batch_size as u64 * recipe.data.max_seq_len as u64
}

#[cfg(test)]
mod tests {
    use super::smaller;

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
