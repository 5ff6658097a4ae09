//! `tune run`: from an opened recipe to an adapter on disk.

use std::path::PathBuf;

use tune_kernels::KernelBackend;

use super::open::{Opened, open};
use super::provenance::Provenance;
use super::sample::Sampler;
use super::{Environment, Error, survey};
use crate::adapter::lora::LoraSet;
use crate::adapter::peft;
use crate::assets;
use crate::data::batch::Batching;
use crate::data::template::ChatTemplate;
use crate::device::{Device, OnBackend};
use crate::export::consumer::Compatibility;
use crate::files::{self, Existing};
use crate::model::{Decoder, FloatDtype, load};
use crate::recipe::RecipeFile;
use crate::train::event::{EvaluationReport, Event, Observer, Sample, Start};
use crate::train::fit::Fit;
use crate::train::folder::RunFolder;
use crate::train::memory;
use crate::train::optimizer::Optimizer;
use crate::train::schedule::Schedule;
use crate::train::state::State;

/// Share of the free memory that kept activations may take.
const ACTIVATION_SHARE: u64 = 4;

/// Choices of a run that are not the recipe's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Replace an earlier run in the output folder.
    pub overwrite: bool,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run folder.
    pub output_dir: PathBuf,
    /// The adapter's folder; `None` when the run was stopped before its last step.
    pub adapter: Option<PathBuf>,
    /// Which programs load the adapter as it is.
    pub readers: Option<Compatibility>,
    /// Optimizer steps done.
    pub steps: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Held-out loss before the first step and after the last.
    pub evaluations: Option<(EvaluationReport, EvaluationReport)>,
    /// Answers to the recipe's sample prompts, before and after.
    pub samples: Vec<Sample>,
}

/// Trains the adapter that a recipe describes.
///
/// # Errors
/// [`Error`]: everything wrong with the recipe or the data, before anything is written; afterwards what stopped the
/// run, with what was learned so far in a checkpoint.
pub fn fine_tune(
    file: RecipeFile,
    environment: &Environment<'_>,
    options: Options,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
    let opened = open(file, environment)?;
    RunFolder::check(&opened.recipe.output_dir, options.overwrite)?;
    let device = Device::of(opened.recipe.device);
    let dtype = opened.compute_dtype(device)?;
    observer.observe(&Event::Targets(&opened.targets));
    if let (Some(start), Some(folder)) = (&opened.start, &opened.recipe.adapter.init_from) {
        let base = start.config().base_model.as_deref().unwrap_or("a base it does not name");
        let text = format!("starts from the adapter in {}, which was trained on {base}", folder.display());
        observer.observe(&Event::Note(text));
    }
    let batching = opened.batching();
    let total_steps = survey::total_steps(&opened, &batching, environment, observer)?;
    device.run(Training {
        opened: &opened,
        environment,
        options,
        batching,
        total_steps,
        device,
        dtype,
        observer,
    })
}

/// Everything that training needs, on its way to a backend.
struct Training<'a> {
    opened: &'a Opened,
    environment: &'a Environment<'a>,
    options: Options,
    batching: Batching,
    total_steps: u64,
    device: Device,
    dtype: FloatDtype,
    observer: &'a mut dyn Observer,
}

impl OnBackend for Training<'_> {
    type Output = Result<Outcome, Error>;

    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output {
        let Self { opened, environment, options, batching, total_steps, observer, .. } = self;
        let recipe = &opened.recipe;
        let mut adapters = opened.adapters::<B>(device)?;
        let decoder: Decoder<B> = load::load(
            opened.model.weights(),
            &opened.spec,
            recipe.quantization,
            self.dtype,
            device,
            &mut |progress| {
                let (done, total) = (progress.done as u64, progress.total as u64);
                observer.observe(&Event::Loading { done, total });
            },
        )?;

        let sampler = Sampler::new(opened)?;
        let before = sampler.answers(&decoder, None, environment.stop)?;

        // Nothing is written before this point.
        let folder = RunFolder::create(&recipe.output_dir, options.overwrite)?;
        files::write_bytes(&folder.recipe(), recipe.to_toml().as_bytes())?;
        let corpus = &opened.corpus;
        observer.observe(&Event::Start(&Start {
            total_steps,
            done_steps: 0,
            trainable_parameters: adapters.count(),
            base_parameters: opened.spec.parameters(),
            frozen_bytes: decoder.frozen_bytes(),
            training_examples: corpus.examples_per_epoch(),
            held_out_examples: corpus.validation_rows(),
            output_dir: recipe.output_dir.clone(),
            compute: format!("{} on {}", self.dtype.name(), self.device.name()),
        }));

        let held_out = || corpus.validation(recipe.train.micro_batch_size);
        let fit = Fit {
            decoder: &decoder,
            spec: &recipe.train,
            seed: recipe.seed,
            schedule: Schedule::new(&recipe.train, total_steps),
            total_steps,
            held_out: (corpus.validation_rows() > 0).then_some(&held_out),
            held_out_examples: corpus.validation_rows(),
            folder: &folder,
            stop: environment.stop,
            activation_budget: memory::available_bytes().unwrap_or(0) / ACTIVATION_SHARE,
            compute_bytes: self.dtype.bytes() as u64,
        };
        let mut optimizer = Optimizer::new(&adapters, recipe.train.weight_decay);
        let state = State::fresh(Default::default());
        let steps = corpus.steps(&batching, state.cursor)?;
        let summary =
            fit.run(&mut adapters, &mut optimizer, state, steps, observer).map_err(|e| opened.explain(e))?;

        let mut outcome = Outcome {
            output_dir: recipe.output_dir.clone(),
            adapter: None,
            readers: None,
            steps: summary.steps,
            tokens: summary.tokens,
            evaluations: summary.first_evaluation.clone().zip(summary.last_evaluation.clone()),
            samples: Vec::new(),
        };
        if summary.stopped {
            return Ok(outcome);
        }
        let tokenizer_files = opened.model.tokenizer_files()?;
        let mut base = opened.model.files_sha256()?;
        for file in &tokenizer_files {
            base.push(assets::folder::digest(file)?);
        }
        let datasets = corpus.datasets().map(|dataset| dataset.sha256()).collect::<Result<Vec<_>, _>>()?;
        let template = opened.template.as_deref().map(ChatTemplate::source);
        let family = opened.spec.family;
        let provenance =
            Provenance { recipe, base: &base, family, datasets: &datasets, template, summary: &summary }
                .metadata();
        let config = opened.peft_config();
        outcome.readers = Some(Compatibility::of(&config, &opened.targets));
        peft::write(
            &folder.adapter(),
            Existing::Refuse,
            &adapters,
            &config,
            &provenance,
            &tokenizer_files,
            template.filter(|_| recipe.data.chat_template.is_some()),
        )?;
        outcome.adapter = Some(folder.adapter());
        match sampler.answers(&decoder, Some(&adapters), environment.stop) {
            Ok(after) => outcome.samples = sampler.pair(before, after),
            // The adapter is on disk: the run is done, whatever becomes of the samples.
            Err(Error::Stopped) => {}
            Err(error) => return Err(error),
        }
        Ok(outcome)
    }
}

impl Opened {
    /// The dtype that the matmuls of a run on `device` use.
    pub(super) fn compute_dtype(&self, device: Device) -> Result<FloatDtype, Error> {
        let checkpoint = crate::model::tensors::checkpoint_dtype(&self.spec, self.model.weights());
        let asked = self.recipe.model.compute_dtype;
        let resolve = FloatDtype::resolve(asked, checkpoint, |d| device.is_native(d), |d| device.supports(d));
        Ok(resolve?)
    }

    /// How examples become optimizer steps.
    pub(super) fn batching(&self) -> Batching {
        let train = &self.recipe.train;
        Batching {
            micro_batch_size: train.micro_batch_size,
            gradient_accumulation_steps: train.gradient_accumulation_steps,
            epochs: train.epochs,
            max_steps: train.max_steps,
        }
    }

    /// What the adapter folder says of itself. A hub model is named by its id and pinned to its commit, since other
    /// tools look the base up by that name.
    fn peft_config(&self) -> peft::Config {
        let (name, revision) = match &self.base.hub {
            Some(hub) => (hub.id.as_str(), Some(hub.commit.as_str())),
            None => (self.recipe.model.base.as_str(), None),
        };
        peft::Config::new(&self.recipe.adapter, &self.targets, &self.spec.modules(), name, revision)
    }

    /// New adapters, or those the recipe starts from.
    pub(super) fn adapters<B: KernelBackend>(&self, device: &B::Device) -> Result<LoraSet<B>, Error> {
        let dropout = self.recipe.adapter.dropout;
        let targets = self.targets.clone();
        match &self.start {
            None => Ok(LoraSet::init(targets, dropout, self.recipe.seed, device)),
            Some(adapter) => {
                let values = adapter.values(&targets)?;
                Ok(LoraSet::from_values(targets, dropout, values, device)?)
            }
        }
    }
}
