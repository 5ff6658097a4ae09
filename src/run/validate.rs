//! `tune validate`: everything a run would check, without training and without writing.

use super::advice::advice;
use super::open::open;
use super::{Environment, Error};
use super::{plan, survey};
use crate::adapter::saved::SavedModule;
use crate::adapter::target::Target;
use crate::data::survey::Survey;
use crate::device::Device;
use crate::model::FloatDtype;
use crate::recipe::{Recipe, RecipeFile};
use crate::train::event::Observer;
use crate::train::memory::Plan;
use crate::train::schedule::Schedule;

/// What a run of the recipe would be.
#[derive(Debug)]
pub struct Validation {
    /// The recipe.
    pub recipe: Recipe,
    /// The model family and its size in parameters.
    pub model: (&'static str, u64),
    /// What the matmuls would run in.
    pub compute_dtype: FloatDtype,
    /// The device.
    pub device: String,
    /// The projections that would get an adapter.
    pub targets: Vec<Target>,
    /// The modules to save.
    pub saved_modules: Vec<SavedModule>,
    /// Where the chat template comes from, where one is used.
    pub template: Option<String>,
    /// What the rows are like.
    pub survey: Survey,
    /// What a person should know, in words.
    pub warnings: Vec<String>,
    /// What is allowed and rarely meant, in words.
    pub notes: Vec<String>,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// What a run would hold in memory.
    pub plan: Plan,
    /// What was chosen so that it fits, in words, where that was asked for.
    pub fitted: Option<String>,
}

/// Checks a recipe and everything it names; with `fit`, after choosing micro-batches for the memory there is.
///
/// # Errors
/// [`Error::Recipe`] with every problem of the recipe and of what it names; [`Error::Data`] with the rows that cannot
/// be used.
pub fn validate(
    file: RecipeFile,
    environment: &Environment<'_>,
    fit: bool,
    observer: &mut dyn Observer,
) -> Result<Validation, Error> {
    let mut opened = open(file, environment)?;
    let device = Device::choose(opened.recipe.device)?;
    let compute_dtype = opened.compute_dtype(&device)?;
    let mut survey = survey::survey(&opened, &opened.batching(), environment, observer)?.accept()?;
    let warnings = [device.notes(), &survey::warnings(&opened, &survey)].concat();
    let mut largest =
        survey.schedule.map_or_else(|| plan::most_tokens(&opened), |schedule| schedule.largest_micro_batch);
    let fitted = match fit {
        true => Some(plan::fit(&mut opened, &device, compute_dtype, &mut largest)?),
        false => None,
    };
    if let Some(schedule) = &mut survey.schedule {
        schedule.largest_micro_batch = largest;
    }
    let plan = plan::plan(&opened, &device, compute_dtype, largest)?;
    let steps = survey.schedule.map_or(0, |schedule| schedule.steps);
    let epochs =
        survey.schedule.map_or(0.0, |schedule| steps as f64 / schedule.steps_per_epoch.max(1) as f64);
    let notes = advice(&opened.recipe, steps, epochs, opened.corpus.validation_rows());
    Ok(Validation {
        model: (opened.spec.family, opened.spec.parameters()),
        compute_dtype,
        device: device.name(),
        targets: opened.targets,
        saved_modules: opened.saved_modules,
        template: opened.template.as_ref().map(|template| template.origin().to_owned()),
        warnings,
        notes,
        warmup_steps: Schedule::new(&opened.recipe.train, steps).warmup_steps(),
        survey,
        plan,
        fitted,
        recipe: opened.recipe,
    })
}
