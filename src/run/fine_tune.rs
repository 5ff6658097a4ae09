//! `tune run`: trains the adapter of a recipe.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn_tensor::{DType, Tensor};
use tune_kernels::KernelBackend;

use super::inputs::Inputs;
use super::open::{Opened, open};
use super::resume::{self, Beginning};
use super::survey::{self, Extent};
use super::training::Training;
use super::{Environment, Error, agreement, packed, plan, require_dtype};
use crate::adapter::lora::LoraSet;
use crate::adapter::peft;
use crate::adapter::saved::SavedModule;
use crate::data::batch::Batching;
use crate::data::example::RowId;
use crate::device::Device;
use crate::export::consumer::Compatibility;
use crate::model::FloatDtype;
use crate::model::fetch::Home;
use crate::recipe::RecipeFile;
use crate::record::{self, End, Journal, Lock};
use crate::train::budget::Clock;
use crate::train::event::{EvaluationReport, Event, Observer, Sample};
use crate::train::folder::RunFolder;
use crate::train::gate::{self, Verdict};
use crate::train::placement::Streaming;
use crate::train::process;
use crate::train::state::{Ended, Saved, State};
use crate::train::team::Team;

/// Options of a run from the command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Replace an earlier run in the output folder.
    pub overwrite: bool,
    /// Continue the run in the output folder from its newest checkpoint.
    pub resume: bool,
    /// Continue even if recipe, base or data differ from those the run started with.
    pub accept_changes: bool,
    /// Read the results of a step only after launching the next, as on a GPU, on the CPU too. For tests: the results
    /// are the same.
    pub runs_ahead: bool,
    /// Choose the fastest micro-batches that fit into memory, for the same optimizer steps.
    pub fit: bool,
    /// Bytes of tokens that are kept from the survey; `None`: a quarter of the free memory. If they do not suffice, rows
    /// are read and tokenized again. The adapter is the same either way.
    pub token_budget: Option<u64>,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run folder.
    pub output_dir: PathBuf,
    /// The adapter's folder; `None` if the run was stopped before its last step.
    pub adapter: Option<PathBuf>,
    /// The programs that load the adapter unchanged.
    pub readers: Compatibility,
    /// How it ended.
    pub ended: Ended,
    /// Whether the run was finished before; nothing was done.
    pub was_finished: bool,
    /// Optimizer steps done.
    pub steps: u64,
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Held-out loss before the first step and after the last.
    pub evaluations: Option<(EvaluationReport, EvaluationReport)>,
    /// The verdicts of the recipe's gates.
    pub verdicts: Vec<Verdict>,
    /// Answers to the recipe's sample prompts, before and after.
    pub samples: Vec<Sample>,
}

impl Outcome {
    /// The outcome at `state`, without adapter and samples.
    pub(super) fn of(opened: &Opened, state: &State, ended: Ended) -> Self {
        Self {
            output_dir: opened.recipe.output_dir.clone(),
            adapter: None,
            readers: Compatibility::of(&opened.peft_config(), &opened.targets),
            ended,
            was_finished: false,
            steps: state.step,
            total_steps: state.total_steps,
            tokens: state.tokens,
            evaluations: state.first_evaluation.clone().zip(state.last_evaluation.clone()),
            verdicts: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// Applies the recipe's gates to the finished adapter.
    pub(super) fn deliver(
        mut self,
        folder: &RunFolder,
        gate: &gate::Spec,
        observer: &mut dyn Observer,
    ) -> Self {
        self.adapter = Some(folder.adapter());
        if let Some((first, last)) = &self.evaluations {
            self.verdicts = gate.judge(first, last);
        }
        if !self.verdicts.is_empty() {
            observer.observe(&Event::Judged(&self.verdicts));
        }
        self
    }
}

/// Trains the adapter that a recipe describes.
///
/// # Errors
/// [`Error`]: all problems of recipe and data, before anything is written; later errors leave the progress so far in a
/// checkpoint.
pub fn fine_tune(
    file: RecipeFile,
    environment: &Environment<'_>,
    options: Options,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
    run(file, environment, options, None, observer)
}

/// Reproduction of an earlier run.
pub(super) struct Again<'a> {
    /// Compares the inputs of the earlier run with the present ones, before training.
    pub(super) check: &'a mut dyn FnMut(&Lock) -> Result<(), Error>,
    /// The optimizer step at which `max_time` ended the earlier run, if it did.
    pub(super) time_spent_after: Option<u64>,
}

/// [`fine_tune`] as one rank of a team: all ranks call it with the same recipe, and all of them end together. `exit` is the
/// exit code of an error, which all ranks end with. Only the first rank writes and reports.
///
/// # Errors
/// As [`fine_tune`], and [`Error::Team`] when another rank fails.
pub fn fine_tune_together(
    team: &Team,
    exit: &dyn Fn(&Error) -> u8,
    file: Result<RecipeFile, Error>,
    environment: &Environment<'_>,
    options: Options,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
    let together = |result: Result<Outcome, Error>| match result {
        Ok(outcome) => team.gather(&[]).map(|_| outcome).map_err(Error::from),
        Err(error) => {
            team.give_up(&error.to_string(), exit(&error));
            Err(error)
        }
    };
    let result = match team.meet().map_err(Error::from).and(file) {
        Ok(file) => recorded(team, file, environment, options, None, &together, observer),
        Err(error) => together(Err(error)),
    };
    team.close();
    result
}

/// [`fine_tune`], or the reproduction of an earlier run.
pub(super) fn run(
    file: RecipeFile,
    environment: &Environment<'_>,
    options: Options,
    again: Option<Again<'_>>,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
    recorded(&Team::alone(), file, environment, options, again, &|result| result, observer)
}

/// Trains, and records how it ended. `together` is the result that all ranks agree on.
fn recorded(
    team: &Team,
    file: RecipeFile,
    environment: &Environment<'_>,
    options: Options,
    again: Option<Again<'_>>,
    together: &dyn Fn(Result<Outcome, Error>) -> Result<Outcome, Error>,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
    let mut journal = Journal::new(observer);
    // Released once the record is written: until then no other process may write there.
    let mut folder = None;
    let result = together(train(team, file, environment, options, again, &mut folder, &mut journal));
    journal.end(match &result {
        Ok(Outcome { adapter: Some(adapter), samples, .. }) => End::Done { adapter, samples },
        Ok(Outcome { adapter: None, .. }) => End::Stopped,
        Err(error) => End::Failed(error.to_string()),
    });
    result
}

fn train(
    team: &Team,
    file: RecipeFile,
    environment: &Environment<'_>,
    options: Options,
    again: Option<Again<'_>>,
    claimed: &mut Option<RunFolder>,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
    let began = Instant::now();
    let mut opened = open(file, environment)?;
    let recipe = &opened.recipe;
    let lanes = agreement::lanes(team, &recipe.train)?;
    if recipe.train.local_steps.is_some()
        && opened.targets.iter().any(|target| target.module.role.is_routed())
    {
        let text = "`[train.local]` averages no adapters of experts, which each worker updates another number of times";
        return Err(Error::Choice(text.to_owned()));
    }
    let folder = match team.is_first() {
        true => Some(claim(&recipe.output_dir, claimed, options, observer)?),
        false => None,
    };
    let device = agreement::device(team, recipe.device)?;
    for note in device.notes() {
        observer.observe(&Event::Warning(note.clone()));
    }
    let dtype = opened.compute_dtype(&device)?;
    opened.ranks = agreement::neighbours(team, &device)?;
    let quarter = || process::available_bytes().unwrap_or(0) / (4 * opened.ranks.on_machine);
    opened.corpus.keep_tokens(options.token_budget.unwrap_or_else(quarter));
    let mut extent = None;
    if options.fit && !team.is_alone() {
        let text =
            "`--fit` chooses for one process; write what `tune validate --fit` chooses into the recipe";
        return Err(Error::Choice(text.to_owned()));
    }
    let is_fitted = |folder: &RunFolder, opened: &mut Opened| resume::adopt_micro_batches(opened, folder);
    if options.fit
        && !(options.resume && folder.as_deref().is_some_and(|folder| is_fitted(folder, &mut opened)))
    {
        let mut found = survey::extent(&opened, &opened.batching(), environment, observer)?;
        let chosen = plan::fit(&mut opened, &device, dtype, &mut found.largest_micro_batch)?;
        observer.observe(&Event::Note(format!("--fit: {chosen}")));
        extent = Some(found);
    }
    let recipe = &opened.recipe;
    let compute = resume::compute(dtype.name(), &device.name());
    let inputs = Inputs::of(&opened, &device, dtype)?;
    let mut clock = Clock::of(recipe.train.budget.max_time, began);
    if let Some(Again { check, time_spent_after }) = again {
        check(inputs.lock())?;
        clock = time_spent_after.map_or(Clock::Still, Clock::Replayed);
    }
    let origin = resume::origin(&opened, &inputs, &compute);
    agreement::require_same(team, &opened, &origin, &device)?;
    let found =
        folder.as_deref().map(|folder| resume::beginning(folder, &opened, &origin, options, observer));
    let (saved, is_changed) = match agreement::beginning(team, found.transpose()?)? {
        Beginning::Trains { saved, is_changed } => (saved, is_changed),
        Beginning::Finished(state) => {
            let ended = state.ended(&recipe.train.budget).unwrap_or(Ended::Done);
            let outcome = Outcome { was_finished: true, ..Outcome::of(&opened, &state, ended) };
            return Ok(match folder {
                Some(folder) => outcome.deliver(folder, &recipe.gate, observer),
                None => outcome,
            });
        }
    };
    observer.observe(&Event::Targets(&opened.targets));
    if let (Some(start), Some(folder)) = (&opened.start, &recipe.adapter.init_from) {
        let base = start.config().base_model.as_deref().unwrap_or("an unnamed base");
        let text = format!("starts from the adapter in {}, which was trained on {base}", folder.display());
        observer.observe(&Event::Note(text));
    }
    let batching = opened.batching();
    let extent = match (&saved, extent) {
        // The same rows, counted and measured when the run started.
        (Some(Saved { state, .. }), _) if !is_changed => {
            Extent { steps: state.total_steps, largest_micro_batch: state.largest_micro_batch }
        }
        (_, Some(fitted)) => fitted,
        (_, None) => survey::extent(&opened, &batching, environment, observer)?,
    };
    let planned = || plan::plan(&opened, &device, dtype, extent.largest_micro_batch);
    // Kept tokens are a convenience: a run that fits only without them goes without.
    let plan = match planned() {
        Err(_) if opened.corpus.forget_tokens() => planned()?,
        planned => planned?,
    };
    // All have seen what memory is free before any takes of it.
    team.gather(&[])?;
    let (opened, inputs) = (&opened, &inputs);
    let packed = match &plan.streaming {
        Some(Streaming { home: Home::Disk, .. }) if packed::is_needed(opened)? => {
            let Some(folder) = folder.as_deref().filter(|_| team.is_alone()) else {
                let text = "several ranks fetch layers from disk only of a base that is stored in 4 bits; `tune quantize` \
                            writes one";
                return Err(Error::Choice(text.to_owned()));
            };
            let workload = plan::workload(opened, &device, dtype, extent.largest_micro_batch);
            packed::ready(opened, inputs, folder, &workload, environment, observer)?
        }
        _ => None,
    };
    let outcome = device.run(Training {
        opened,
        environment,
        inputs,
        team,
        lanes,
        folder,
        batching,
        origin,
        extent,
        saved,
        clock,
        compute,
        dtype,
        plan,
        packed,
        device_name: device.name(),
        runs_ahead: team.is_alone() && (options.runs_ahead || device.has_own_memory()),
        observer,
    });
    outcome?
}

/// Takes the output folder for this process.
fn claim<'a>(
    output_dir: &Path,
    claimed: &'a mut Option<RunFolder>,
    options: Options,
    observer: &mut dyn Observer,
) -> Result<&'a mut RunFolder, Error> {
    let folder = claimed.insert(RunFolder::claim(output_dir)?);
    if !options.resume {
        folder.require_free(options.overwrite)?;
    }
    if !folder.is_exclusive() {
        let text =
            "the file system does not support locks; make sure that no other run writes to this folder";
        observer.observe(&Event::Warning(text.into()));
    }
    Ok(folder)
}

impl Opened {
    /// The compute dtype of a run on `device`.
    ///
    /// # Errors
    /// [`Error::Dtype`] if the device does not support the recipe's dtype.
    pub(super) fn compute_dtype(&self, device: &Device) -> Result<FloatDtype, Error> {
        let checkpoint = crate::model::tensors::checkpoint_dtype(&self.spec, self.model.weights());
        let asked = self.recipe.model.compute_dtype;
        // Device support is checked afterwards, so that the error lists the supported dtypes.
        let dtype = self.spec.compute_dtype(asked, checkpoint, |dtype| device.is_native(dtype), |_| true)?;
        require_dtype(device, dtype)?;
        Ok(dtype)
    }

    /// The hash of everything the run reads.
    pub(super) fn lock(&self, device: &Device, dtype: FloatDtype) -> Result<Lock, Error> {
        let inputs = record::Inputs {
            recipe: &self.recipe,
            base: &self.base,
            model: &self.model,
            template: self.template.as_deref(),
            corpus: &self.corpus,
            device: &device.name(),
            dtype: dtype.name(),
        };
        Ok(Lock::new(&inputs)?)
    }

    /// The place of a row: file and line.
    pub(super) fn place(&self, id: RowId) -> String {
        match self.corpus.datasets().nth(id.dataset as usize) {
            Some(dataset) => dataset.place(id.row).to_string(),
            None => format!("row {} of dataset {}", id.row, id.dataset),
        }
    }

    /// How examples are divided into optimizer steps.
    pub(super) fn batching(&self) -> Batching {
        let train = &self.recipe.train;
        Batching {
            micro_batch_size: train.micro_batch_size,
            gradient_accumulation_steps: train.gradient_accumulation_steps,
            epochs: train.epochs,
            max_steps: train.max_steps,
        }
    }

    /// The configuration of the adapter folder. A hub model is named by its id and pinned to its commit, because other
    /// tools look up the base by that name.
    pub(super) fn peft_config(&self) -> peft::Config {
        let (name, revision) = match &self.base.hub {
            Some(hub) => (hub.id.as_str(), Some(hub.commit.as_str())),
            None => (self.recipe.model.base.as_str(), None),
        };
        peft::Config::new(&self.recipe.adapter, &self.targets, &self.spec.modules(), name, revision)
    }

    /// New adapters, or those that the recipe starts from.
    pub(super) fn adapters<B: KernelBackend>(&self, device: &B::Device) -> Result<LoraSet<B>, Error> {
        let dropout = self.recipe.adapter.dropout;
        let targets = self.targets.clone();
        let Some(start) = &self.start else {
            // No numbers before those of the base are there.
            let unset = |saved: &SavedModule| Tensor::full(saved.shape, f32::NAN, (device, DType::F32));
            let adapters = LoraSet::init(targets, dropout, self.recipe.seed, device);
            return Ok(adapters.with_saved_modules(self.saved_modules.clone(), unset));
        };
        let adapters = LoraSet::from_values(targets.clone(), dropout, start.values(&targets)?, device)?;
        Ok(start.with_own_saved_modules(adapters, self.saved_modules.clone(), device)?)
    }
}
