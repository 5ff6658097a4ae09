//! The memory plan of an opened recipe, before anything is loaded.

use super::Error;
use super::open::Opened;
use crate::model::FloatDtype;
use crate::train::memory::{self, Plan, Workload};

/// Share of the free memory that a run takes at most, unless the recipe says how much it may use: the rest of the
/// machine needs some, and no plan is exact.
const SHARE: f64 = 0.9;

/// The plan of a run whose largest micro-batch has `tokens` tokens.
///
/// # Errors
/// [`Error::Memory`] if it does not fit.
pub(super) fn plan(opened: &Opened, dtype: FloatDtype, tokens: u64) -> Result<Plan, Error> {
    let recipe = &opened.recipe;
    let program = memory::resident_bytes().unwrap_or(0);
    let free = memory::available_bytes().map(|free| program + (free as f64 * SHARE) as u64);
    let budget = recipe.train.memory_budget.or(free).unwrap_or(u64::MAX);
    let workload = Workload {
        spec: &opened.spec,
        quantization: recipe.quantization,
        dtype,
        targets: &opened.targets,
        wholes: &opened.wholes,
        tokens,
        program,
    };
    Ok(Plan::new(&workload, budget)?)
}

/// The most tokens that a micro-batch of the recipe can have, where the rows have not been looked at.
pub(super) fn most_tokens(opened: &Opened) -> u64 {
    let recipe = &opened.recipe;
    recipe.train.micro_batch_size as u64 * recipe.data.max_seq_len as u64
}
