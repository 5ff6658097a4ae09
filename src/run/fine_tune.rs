//! `tune run`: trains the adapter of a recipe.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{DType, Tensor};
use tune_kernels::KernelBackend;

use super::advice::advice;
use super::inputs::{self, Inputs};
use super::open::{Opened, open};
use super::provenance::Provenance;
use super::resume::{self, Beginning};
use super::sample::Sampler;
use super::survey::{self, Extent};
use super::{Environment, Error, packed, plan, require_dtype};
use crate::adapter::lora::LoraSet;
use crate::adapter::peft;
use crate::adapter::saved::SavedModule;
use crate::data::batch::Batching;
use crate::data::example::RowId;
use crate::data::template::ChatTemplate;
use crate::device::{Device, OnBackend};
use crate::export::consumer::Compatibility;
use crate::files::{self, Existing};
use crate::model::fetch::Home;
use crate::model::{Decoder, FloatDtype, load};
use crate::recipe::RecipeFile;
use crate::record::{self, End, Journal, Lock};
use crate::train::budget::Clock;
use crate::train::event::{EvaluationReport, Event, Observer, Sample, Start};
use crate::train::fit::{Fit, Position, Sample as Answering};
use crate::train::folder::RunFolder;
use crate::train::gate::{self, Verdict};
use crate::train::memory::Plan;
use crate::train::optimizer::Optimizer;
use crate::train::placement::Streaming;
use crate::train::process;
use crate::train::schedule::Schedule;
use crate::train::state::{Ended, Origin, Saved, State};

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
    fn of(opened: &Opened, state: &State, ended: Ended) -> Self {
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
    fn deliver(mut self, folder: &RunFolder, gate: &gate::Spec, observer: &mut dyn Observer) -> Self {
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

/// [`fine_tune`], or the reproduction of an earlier run.
pub(super) fn run(
    file: RecipeFile,
    environment: &Environment<'_>,
    options: Options,
    again: Option<Again<'_>>,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
    let mut journal = Journal::new(observer);
    // Released once the record is written: until then no other process may write there.
    let mut folder = None;
    let result = train(file, environment, options, again, &mut folder, &mut journal);
    journal.end(match &result {
        Ok(Outcome { adapter: Some(adapter), samples, .. }) => End::Done { adapter, samples },
        Ok(Outcome { adapter: None, .. }) => End::Stopped,
        Err(error) => End::Failed(error.to_string()),
    });
    result
}

fn train(
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
    let folder = claimed.insert(RunFolder::claim(&recipe.output_dir)?);
    if !options.resume {
        folder.require_free(options.overwrite)?;
    }
    if !folder.is_exclusive() {
        let text =
            "the file system does not support locks; make sure that no other run writes to this folder";
        observer.observe(&Event::Warning(text.into()));
    }
    let device = Device::choose(recipe.device)?;
    for note in device.notes() {
        observer.observe(&Event::Warning(note.clone()));
    }
    let dtype = opened.compute_dtype(&device)?;
    let quarter = || process::available_bytes().unwrap_or(0) / 4;
    opened.corpus.keep_tokens(options.token_budget.unwrap_or_else(quarter));
    let mut extent = None;
    if options.fit && !(options.resume && resume::adopt_micro_batches(&mut opened, folder)) {
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
    let (saved, is_changed) = match resume::beginning(folder, &opened, &origin, options, observer)? {
        Beginning::Trains { saved, is_changed } => (saved, is_changed),
        Beginning::Finished(state) => {
            let ended = state.ended(&recipe.train.budget).unwrap_or(Ended::Done);
            let outcome = Outcome { was_finished: true, ..Outcome::of(&opened, &state, ended) };
            return Ok(outcome.deliver(folder, &recipe.gate, observer));
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
    let (opened, inputs) = (&opened, &inputs);
    let packed = match &plan.streaming {
        Some(Streaming { home: Home::Disk, .. }) => {
            let workload = plan::workload(opened, &device, dtype, extent.largest_micro_batch);
            packed::ready(opened, inputs, folder, &workload, environment, observer)?
        }
        _ => None,
    };
    let outcome = device.run(Training {
        opened,
        environment,
        inputs,
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
        runs_ahead: options.runs_ahead || device.has_own_memory(),
        observer,
    });
    outcome?
}

/// Runs training on a backend.
struct Training<'a> {
    opened: &'a Opened,
    environment: &'a Environment<'a>,
    inputs: &'a Inputs,
    folder: &'a mut RunFolder,
    batching: Batching,
    origin: Origin,
    extent: Extent,
    /// The checkpoint to continue from.
    saved: Option<Saved>,
    clock: Clock,
    compute: String,
    dtype: FloatDtype,
    plan: Plan,
    /// Where layers are fetched from that the base's own files do not have in 4 bits.
    packed: Option<PathBuf>,
    device_name: String,
    runs_ahead: bool,
    observer: &'a mut dyn Observer,
}

impl OnBackend for Training<'_> {
    type Output = Result<Outcome, Error>;

    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output {
        let Self { opened, environment, inputs, folder, extent, saved, observer, .. } = self;
        let recipe = &opened.recipe;
        let mut adapters = opened.adapters::<B>(device)?;
        let mut optimizer =
            Optimizer::new(&adapters, recipe.train.weight_decay, recipe.adapter.learning_rate_ratio);
        let goes_on = saved.is_some();
        let Extent { steps: total_steps, largest_micro_batch } = extent;
        let position = match saved {
            None => {
                let state = State::fresh(Default::default(), total_steps);
                let state = State { largest_micro_batch, origin: self.origin, ..state };
                Position { state, kept: None, saved: None }
            }
            Some(mut saved) => {
                saved.state.total_steps = total_steps;
                saved.state.largest_micro_batch = largest_micro_batch;
                let path = saved.path.clone();
                let (state, kept) = saved.restore(&mut adapters, &mut optimizer, device)?;
                Position { state, kept, saved: Some(path) }
            }
        };
        let progress = &mut |progress: load::Progress<'_>| {
            let (done, total) = (progress.done as u64, progress.total as u64);
            observer.observe(&Event::Loading { done, total });
        };
        let (weights, spec, quantization) = (opened.model.weights(), &opened.spec, recipe.quantization);
        let decoder: Decoder<B> = match &self.plan.streaming {
            None => load::load(weights, spec, quantization, self.dtype, device, progress)?,
            Some(streaming) => {
                let streaming = streaming.load(self.packed.as_deref());
                load::load_streaming(weights, spec, quantization, self.dtype, device, streaming, progress)?
            }
        };
        inputs.require_unchanged()?;
        if !goes_on && opened.start.is_none() {
            decoder.init_magnitudes(&mut adapters)?;
            decoder.init_wholes(&mut adapters);
        }

        let reference = match (recipe.objective.needs_reference(), &opened.start) {
            (false, _) => None,
            (true, None) => Some(LoraSet::init(Vec::new(), 0.0, recipe.seed, device)),
            (true, Some(_)) => Some(opened.adapters(device)?),
        };
        let reference = reference.as_ref().map(LoraSet::until_update);

        let sampler = Sampler::new(opened)?;
        let before = sampler.answers(&decoder, None, environment.stop)?;
        sampler.report_before(&before, observer);

        // Nothing but the lock is written before this point.
        folder.begin(goes_on)?;
        if let Some(path) = &position.saved {
            folder.set_aside(position.state.step, path)?;
        }
        files::write_bytes(&folder.recipe(), recipe.to_toml().as_bytes())?;
        inputs.lock().write(folder.root())?;
        files::write_bytes(&folder.memory_plan(), self.plan.to_json().as_bytes())?;
        let corpus = &opened.corpus;
        if !goes_on {
            let rows = recipe.train.micro_batch_size * recipe.train.gradient_accumulation_steps;
            let epochs = recipe.train.epochs.unwrap_or_else(|| {
                // With packing a step has more rows than this.
                (total_steps * rows as u64) as f64 / corpus.examples_per_epoch().max(1) as f64
            });
            for note in advice(recipe, total_steps, epochs, corpus.validation_rows()) {
                observer.observe(&Event::Note(note));
            }
        }
        observer.observe(&Event::Start(&Start {
            total_steps,
            done_steps: position.state.step,
            trainable_parameters: adapters.count(),
            base_parameters: opened.spec.parameters(),
            frozen_bytes: decoder.frozen_bytes(),
            training_examples: corpus.examples_per_epoch(),
            held_out_examples: corpus.validation_rows(),
            output_dir: recipe.output_dir.clone(),
            compute: self.compute,
            plan: self.plan.clone(),
            eval_steps: recipe.train.eval_steps,
        }));

        let held_out = || corpus.validation(recipe.train.micro_batch_size);
        let place = |id| opened.place(id);
        let path = folder.samples();
        let sample = |step: u64, adapters: &LoraSet<B>, observer: &mut dyn Observer| {
            sampler.answer_under_way(step, &decoder, adapters, environment.stop, &path, observer);
        };
        let fit = Fit {
            decoder: &decoder,
            objective: &recipe.objective,
            reference: reference.as_ref(),
            spec: &recipe.train,
            seed: recipe.seed,
            schedule: Schedule::new(&recipe.train, total_steps),
            held_out: (corpus.validation_rows() > 0).then_some(&held_out),
            held_out_examples: corpus.validation_rows(),
            folder,
            stop: environment.stop,
            save: environment.save,
            clock: self.clock,
            place: &place,
            device: &self.device_name,
            kept_layers: self.plan.kept_layers,
            runs_ahead: self.runs_ahead,
            sample: recipe.sample.every.map(|every| (every, &sample as Answering<'_, B>)),
        };
        let steps = corpus.steps(&self.batching, position.state.cursor)?;
        let fitted = fit.run(&mut adapters, &mut optimizer, position, steps, observer);
        let changed = inputs.changed(opened);
        report_changed(&changed, opened, observer);
        let summary = match fitted {
            Ok(summary) => summary,
            Err(error) => {
                note_how_to_resume(folder, observer);
                return Err(error.into());
            }
        };

        let outcome = Outcome::of(opened, &summary.state, summary.ended);
        if summary.ended == Ended::Stopped {
            return Ok(outcome);
        }
        inputs.require_same_tokenizer(&changed, opened)?;
        let template = opened.template.as_deref().map(ChatTemplate::source);
        let family = opened.spec.family;
        let provenance = Provenance { recipe, family, inputs: inputs.hashes(), summary: &summary }.metadata();
        peft::write(
            &folder.adapter(),
            // A resumed run has already announced the adapter that it replaces.
            if goes_on { Existing::Replace } else { Existing::Refuse },
            &adapters,
            &opened.peft_config(),
            &provenance,
            &opened.model.tokenizer_files()?,
            template.filter(|_| recipe.data.chat_template.is_some()),
        )?;
        let mut outcome = outcome.deliver(folder, &recipe.gate, observer);
        match sampler.answers(&decoder, Some(&adapters), environment.stop) {
            Ok(after) => outcome.samples = sampler.pair(before, after),
            // The adapter is on disk: the run is finished even if sampling fails.
            Err(Error::Stopped) => {}
            Err(error) => return Err(error),
        }
        Ok(outcome)
    }
}

/// Reports the inputs that changed on disk during the run, of which the record keeps the names.
fn report_changed(changed: &BTreeSet<&str>, opened: &Opened, observer: &mut dyn Observer) {
    let datasets: Vec<String> = opened.recipe.datasets.iter().map(|dataset| dataset.path.clone()).collect();
    for name in changed {
        let what = inputs::what(name, &datasets);
        let text = format!(
            "{what} changed on disk during the run; the adapter is made from what was read before, which is what recipe.lock \
             names"
        );
        observer.observe(&Event::InputChanged(what));
        observer.observe(&Event::Warning(text));
    }
}

/// After a failure: names the newest checkpoint, if there is one.
fn note_how_to_resume(folder: &RunFolder, observer: &mut dyn Observer) {
    // The original error is the one to report.
    if let Some(step) = folder.checkpoint_steps().ok().and_then(|steps| steps.last().copied()) {
        let path = folder.checkpoint(step);
        observer.observe(&Event::Note(format!(
            "fix the cause, then continue from {} with `--resume`",
            path.display()
        )));
    }
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
    fn place(&self, id: RowId) -> String {
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
    fn peft_config(&self) -> peft::Config {
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
