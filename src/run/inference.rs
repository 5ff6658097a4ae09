//! A model for inference: base, adapter, tokenizer and chat template are opened and checked against each other, then
//! loaded once and used for any number of prompts. Shared by `tune generate`, `tune chat` and `tune eval`.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tune_kernels::KernelBackend;

use super::named::{adapter_folder, is_run};
use super::provenance::CHAT_TEMPLATE_KWARGS;
use super::{Environment, Error, packed};
use crate::adapter::lora::LoraSet;
use crate::adapter::peft;
use crate::adapter::target::Target;
use crate::assets::{ModelDir, resolve_base};
use crate::data::batch::MicroBatch;
use crate::data::error::Error as DataError;
use crate::data::template::ChatTemplate;
use crate::data::tokenize::Tokenizer;
use crate::device::{Device, OnBackend};
use crate::export::base::{FAMILY_KEY, OpenedBase, Trained, ignored_config_keys};
use crate::export::folder::{Text, configured_ends, end_tokens as ends_of_text};
use crate::generate::Session;
use crate::generate::answer::{Answer, Heard, Request, answer, answer_together};
use crate::generate::memory::{Extent, require};
use crate::model::fetch::Home;
use crate::model::spec::ComputeDtype;
use crate::model::{self, Decoder, FloatDtype, load, tensors};
use crate::quant::spec::{Quantization, Spec};
use crate::recipe::{DeviceSpec, Recipe, RecipeFile};
use crate::train::backward::document_sums;
use crate::train::error::FitError;
use crate::train::event::{Event, Observer};
use crate::train::memory::Workload;
use crate::train::placement::{Placement, Streaming};
use crate::train::process::resident_bytes;

/// Storage of the base in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantize {
    /// As in the adapter's training; without an adapter, as stored.
    #[default]
    Auto,
    /// In NF4, with double quantization.
    Nf4,
    /// As stored.
    No,
}

/// A model, as the user names it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelChoice<'a> {
    /// A folder or a hub id; `None`: the base that the adapter or its run names.
    pub base: Option<&'a str>,
    /// A branch, tag or commit of a hub id.
    pub revision: Option<&'a str>,
    /// An adapter's folder, or that of a finished run.
    pub adapter: Option<&'a Path>,
    /// Storage of the base in memory.
    pub quantize: Quantize,
    /// Compute dtype; `None`: the run's, else the checkpoint's dtype if the device multiplies it natively.
    pub compute_dtype: Option<ComputeDtype>,
    /// The device; `None`: the run's, else the best one.
    pub device: Option<DeviceSpec>,
    /// Memory limit in bytes; `None`: a share of the free memory.
    pub memory_budget: Option<u64>,
}

/// A model that is opened and checked; its weights are not loaded.
pub struct OpenedModel {
    /// The base.
    pub base: OpenedBase,
    /// The adapter and its targets, if there is one.
    pub adapter: Option<(peft::Adapter, Vec<Target>)>,
    /// The tokenizer; `None` for a base without one, which supports only the loss of `tokens` data.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// The chat template, if there is one.
    pub template: Option<Arc<ChatTemplate>>,
    /// Quantization applied while loading.
    pub quantization: Option<Quantization>,
    /// Compute dtype.
    pub dtype: FloatDtype,
    /// The device.
    pub device: Device,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
    memory_budget: Option<u64>,
    /// The base in 4 bits, as a run that fetched layers from disk left it in its folder.
    packed: Option<PathBuf>,
}

/// The base alone, or the base with its adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The base alone.
    Base,
    /// The base with its adapter, if there is one.
    Adapted,
}

/// Receives an answer's text while it is generated, and can end it.
pub type Listener<'a> = dyn FnMut(&str) -> ControlFlow<()> + 'a;

/// Receives the text and the end of answers that are generated side by side, by number.
pub type TogetherListener<'a> = dyn FnMut(usize, Heard<'_>) -> ControlFlow<()> + 'a;

type TogetherWith<'a> =
    dyn FnMut(Side, &[Request<'_>], &mut TogetherListener<'_>) -> Result<(), Box<(usize, Error)>> + 'a;
type AnswerWith<'a> = dyn FnMut(Side, Request<'_>, &mut Listener<'_>) -> Result<Answer, Error> + 'a;
type LossesOf<'a> = dyn FnMut(Side, &MicroBatch) -> Result<Vec<f64>, Error> + 'a;

/// A loaded model, on any backend.
pub struct LoadedModel<'a> {
    answer: &'a mut AnswerWith<'a>,
    together: &'a mut TogetherWith<'a>,
    losses: &'a mut LossesOf<'a>,
}

impl LoadedModel<'_> {
    /// Answers a prompt. The prefix shared with the previous prompt is reused from the cache.
    ///
    /// # Errors
    /// The prompt is empty or fills the context; the model is damaged or has no tokenizer.
    pub fn answer(
        &mut self,
        side: Side,
        request: Request<'_>,
        listen: &mut Listener<'_>,
    ) -> Result<Answer, Error> {
        (self.answer)(side, request, listen)
    }

    /// Answers prompts side by side, as many as the model was loaded for. On the CPU each answer is the same as by itself.
    ///
    /// # Errors
    /// As [`Self::answer`], with the number of the prompt.
    pub fn answer_together(
        &mut self,
        side: Side,
        requests: &[Request<'_>],
        listen: &mut TogetherListener<'_>,
    ) -> Result<(), Box<(usize, Error)>> {
        (self.together)(side, requests, listen)
    }

    /// Σ negative log-likelihood of the supervised tokens of each document of a batch.
    ///
    /// # Errors
    /// Ids outside the vocabulary.
    pub fn losses(&mut self, side: Side, batch: &MicroBatch) -> Result<Vec<f64>, Error> {
        (self.losses)(side, batch)
    }
}

/// The model settings of a run's recipe.
struct Origin {
    base: String,
    revision: Option<String>,
    ignored_config_keys: Vec<String>,
    quantization: Option<Quantization>,
    compute_dtype: ComputeDtype,
    device: DeviceSpec,
}

impl Origin {
    fn of(recipe: &Recipe) -> Self {
        Self {
            base: recipe.model.base.clone(),
            revision: recipe.model.revision.clone(),
            ignored_config_keys: recipe.model.ignore_config_keys.clone(),
            quantization: recipe.quantization.clone(),
            compute_dtype: recipe.model.compute_dtype,
            device: recipe.device,
        }
    }
}

impl OpenedModel {
    /// Opens and checks the model that `choice` names; loads no weights.
    ///
    /// # Errors
    /// A part is missing, unusable, or does not fit the others.
    pub fn open(choice: ModelChoice<'_>, environment: &Environment<'_>) -> Result<Self, Error> {
        let Some(folder) = choice.adapter else { return Self::new(choice, None, None, environment) };
        let adapter = peft::Adapter::open(&adapter_folder(folder)?)?;
        if !is_run(folder) {
            return Self::new(choice, Some(adapter), None, environment);
        }
        let recipe = RecipeFile::open(&folder.join("recipe.toml"), &[])?.finish();
        let recipe = recipe.map_err(|problems| Error::Recipe(problems.into()))?;
        let mut opened = Self::new(choice, Some(adapter), Some(Origin::of(&recipe)), environment)?;
        let packed = packed::folder_in(folder);
        opened.packed =
            packed.filter(|_| choice.base.is_none() && opened.quantization == recipe.quantization);
        Ok(opened)
    }

    /// Opens the model of a recipe, with the overrides and the adapter of `choice`.
    ///
    /// # Errors
    /// As [`OpenedModel::open`].
    pub fn of_recipe(
        recipe: &Recipe,
        choice: ModelChoice<'_>,
        environment: &Environment<'_>,
    ) -> Result<Self, Error> {
        let adapter = match choice.adapter {
            Some(folder) => Some(peft::Adapter::open(&adapter_folder(folder)?)?),
            None => None,
        };
        let mut opened = Self::new(choice, adapter, Some(Origin::of(recipe)), environment)?;
        if let (None, Some(tokenizer)) = (&opened.adapter, &opened.tokenizer) {
            let root = opened.base.folder.root();
            let template = ChatTemplate::open(recipe.data.chat_template.as_ref(), root, tokenizer);
            let kwargs = recipe.data.chat_template_kwargs.clone().unwrap_or_default();
            let template = template.map_err(DataError::from)?;
            opened.template = template.map(|template| Arc::new(template.with_kwargs(kwargs.0)));
            let template = opened.template.as_deref();
            opened.end_tokens = end_tokens(Some(tokenizer), template, &opened.base.folder);
        }
        Ok(opened)
    }

    fn new(
        choice: ModelChoice<'_>,
        adapter: Option<peft::Adapter>,
        origin: Option<Origin>,
        environment: &Environment<'_>,
    ) -> Result<Self, Error> {
        let (name, revision) = base_of(choice, adapter.as_ref(), origin.as_ref())?;
        let found =
            resolve_base(&name, revision.as_deref(), environment.hub_cache).map_err(model::Error::from)?;
        let ignored = match (&origin, &adapter) {
            (Some(origin), _) => origin.ignored_config_keys.clone(),
            (None, Some(adapter)) => ignored_config_keys(adapter),
            (None, None) => Vec::new(),
        };
        let base = OpenedBase::open_without(found, ignored)?;
        let adapter = adapter.map(|adapter| fitted(adapter, &base)).transpose()?;
        let text = match &adapter {
            Some((adapter, _)) => Text::open(adapter, &base.folder)?,
            None => text_of(&base.folder)?,
        };
        let quantization = match (choice.quantize, &origin, &adapter) {
            (Quantize::No, ..) => None,
            (Quantize::Nf4, ..) => Some(Quantization::USUAL),
            (Quantize::Auto, Some(origin), _) => origin.quantization.clone(),
            (Quantize::Auto, None, Some((adapter, _))) => match Trained::of(adapter) {
                Trained::Quantized(quantization) => Some(quantization),
                Trained::AsStored | Trained::Unknown => None,
            },
            (Quantize::Auto, None, None) => None,
        };
        let base = match &quantization {
            Some(Quantization { keep, .. }) => base.keeping(keep)?,
            None => base,
        };
        let device = choice.device.or(origin.as_ref().map(|origin| origin.device));
        let device = Device::choose(device.unwrap_or(DeviceSpec::Auto))?;
        let stored = tensors::checkpoint_dtype(&base.spec, base.folder.weights());
        let asked = choice.compute_dtype.or(origin.map(|origin| origin.compute_dtype));
        let asked = asked.unwrap_or(ComputeDtype::Auto);
        let dtype =
            base.spec.compute_dtype(asked, stored, |d| device.is_native(d), |d| device.supports(d))?;
        let template = match adapter.as_ref().and_then(|(one, _)| one.metadata().get(CHAT_TEMPLATE_KWARGS)) {
            Some(kwargs) => {
                let kwargs = serde_json::from_str(kwargs).map_err(|error| {
                    Error::Choice(format!(
                        "the adapter's metadata `{CHAT_TEMPLATE_KWARGS}` is not valid: {error}"
                    ))
                })?;
                text.template.map(|template| template.with_kwargs(kwargs))
            }
            None => text.template,
        };
        let end_tokens = end_tokens(text.tokenizer.as_ref(), template.as_ref(), &base.folder);
        Ok(Self {
            base,
            adapter,
            tokenizer: text.tokenizer.map(Arc::new),
            template: template.map(Arc::new),
            quantization,
            dtype,
            device,
            end_tokens,
            memory_budget: choice.memory_budget,
            packed: None,
        })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// There is none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        let missing = || match Tokenizer::open(self.base.folder.root()) {
            Err(error) => Error::Choice(error.to_string()),
            Ok(_) => Error::Unopened,
        };
        self.tokenizer.as_deref().ok_or_else(missing)
    }

    /// Largest number of tokens of prompt and answer together.
    pub fn context(&self) -> usize {
        self.base.spec.positions()
    }

    /// Checks that the model fits into memory for work of this extent.
    ///
    /// # Errors
    /// [`Error::Memory`], with the largest terms and remedies.
    pub fn require_memory(&self, extent: Extent) -> Result<(), Error> {
        self.fitted(extent).map(|_| ())
    }

    /// How many conversations fit side by side, up to those of the extent, where nothing more of the model has to lie
    /// elsewhere for them; and what has to.
    fn fitted(&self, extent: Extent) -> Result<(usize, Held), Error> {
        let with = |lanes: usize| self.held(Extent { lanes, ..extent }).map(|held| (lanes, held));
        let alone = with(1)?;
        let elsewhere = |(_, held): &(usize, Held)| {
            (held.host_embeddings, held.streaming.as_ref().map(|streaming| streaming.resident_layers))
        };
        let mut more = (2..=extent.lanes).rev().filter_map(|lanes| with(lanes).ok());
        Ok(more.find(|found| elsewhere(found) == elsewhere(&alone)).unwrap_or(alone))
    }

    /// How quantized projections are stored.
    fn blocks(&self) -> Option<Spec> {
        self.quantization.as_ref().map(|quantization| quantization.blocks)
    }

    /// What of the model has to lie elsewhere than on the device, so that the rest fits: nothing, the token embeddings, or
    /// those and layers that are fetched for each use.
    fn held(&self, extent: Extent) -> Result<Held, Error> {
        let on_device = self.device.has_own_memory();
        let workload = Workload {
            spec: &self.base.spec,
            quantization: self.blocks().or(self.base.blocks),
            dtype: self.dtype,
            targets: self.adapter.as_ref().map_or(&[], |(_, targets)| targets),
            saved_modules: &[],
            tokens: 0,
            shares_prompts: false,
            program: match on_device {
                true => self.device.context_bytes(),
                false => resident_bytes().unwrap_or(0),
            },
            on_device,
            host_embeddings: false,
            host_inputs: false,
        };
        let budget = self.memory_budget.or_else(|| self.device.memory_for_a_run()).unwrap_or(u64::MAX);
        if require(&workload, extent, None, budget).is_ok() {
            return Ok(Held { host_embeddings: false, streaming: None });
        }
        let workload = Workload { host_embeddings: true, ..workload };
        let Err(error) = require(&workload, extent, None, budget) else {
            return Ok(Held { host_embeddings: true, streaming: None });
        };
        let home = if on_device { Home::Host } else { Home::Disk };
        // Quantizing a layer at every use would take longer than computing with it.
        let is_readable = self.base.quantized || self.quantization.is_none() || self.packed.is_some();
        let of = |resident_layers| Streaming::of(&workload, Placement { home, resident_layers });
        let fits = |streaming: &Streaming| require(&workload, extent, Some(streaming), budget).is_ok();
        let mut placed = (0..self.base.spec.layers.len()).rev().map(of);
        let found = placed.find(fits).filter(|_| on_device || is_readable);
        let streaming = Some(found.ok_or(error)?);
        Ok(Held { host_embeddings: true, streaming })
    }

    /// Loads the model, if it fits into memory for work of this extent, and runs `body` with it.
    ///
    /// # Errors
    /// As [`Self::require_memory`]; the model cannot be loaded.
    pub fn with_loaded<O: Observer, R>(
        &self,
        extent: Extent,
        observer: &mut O,
        body: impl FnOnce(&mut LoadedModel<'_>, &mut O) -> R,
    ) -> Result<R, Error> {
        let (lanes, held) = self.fitted(extent)?;
        if let Some(streaming) = &held.streaming {
            observer.observe(&Event::Note(format!(
                "{} of {} layers fit into memory; the others are fetched for each pass",
                streaming.resident_layers,
                self.base.spec.layers.len()
            )));
        }
        self.device.run(Loading { opened: self, lanes, held, observer, body })?
    }
}

/// What of a model lies elsewhere than on the device.
struct Held {
    host_embeddings: bool,
    streaming: Option<Streaming>,
}

/// Loads the model and runs `body` on the chosen backend.
struct Loading<'a, O, F> {
    opened: &'a OpenedModel,
    lanes: usize,
    held: Held,
    observer: &'a mut O,
    body: F,
}

impl<O: Observer, R, F: FnOnce(&mut LoadedModel<'_>, &mut O) -> R> OnBackend for Loading<'_, O, F> {
    type Output = Result<R, Error>;

    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output {
        let Self { opened, lanes, held, observer, body } = self;
        let adapters: Option<LoraSet<B>> = match &opened.adapter {
            Some((adapter, targets)) => {
                Some(LoraSet::from_values(targets.clone(), 0.0, adapter.values(targets)?, device)?)
            }
            None => None,
        };
        let base = &opened.base;
        let progress = &mut |progress: load::Progress<'_>| {
            let (done, total) = (progress.done as u64, progress.total as u64);
            observer.observe(&Event::Loading { done, total });
        };
        let (weights, spec, dtype) = (base.folder.weights(), &base.spec, opened.dtype);
        let streaming = held.streaming.map(|streaming| streaming.load(opened.packed.as_deref()));
        let layout = load::Layout { host_embeddings: held.host_embeddings, streaming };
        let decoder: Decoder<B> =
            load::load_as(weights, spec, opened.blocks(), dtype, device, layout, progress)?;
        let alone = RefCell::new(Session::new(&decoder, None));
        let adapted = adapters.as_ref().map(|adapters| RefCell::new(Session::new(&decoder, Some(adapters))));
        let session = |side: Side| match (side, &adapted) {
            (Side::Adapted, Some(session)) => session,
            _ => &alone,
        };
        let mut ask = |side: Side, request: Request<'_>, listen: &mut Listener<'_>| {
            Ok(answer(&mut session(side).borrow_mut(), opened.tokenizer()?, request, listen)?)
        };
        let mut together = |side: Side, requests: &[Request<'_>], listen: &mut TogetherListener<'_>| {
            let tokenizer = opened.tokenizer().map_err(|error| Box::new((0, error)))?;
            let answered = answer_together(&session(side).borrow(), tokenizer, lanes, requests, listen);
            answered.map_err(|failed| Box::new((failed.number, failed.error.into())))
        };
        let nothing = LoraSet::init(Vec::new(), 0.0, 0, device);
        let (nothing, adapters) = (nothing.until_update(), adapters.as_ref().map(LoraSet::until_update));
        let mut losses = |side: Side, batch: &MicroBatch| {
            let adapters = match (side, &adapters) {
                (Side::Adapted, Some(adapters)) => adapters,
                _ => &nothing,
            };
            let losses = B::read_later(document_sums(&decoder, adapters, batch)?);
            let losses = losses.wait().map_err(|message| FitError::device(&opened.device.name(), message))?;
            Ok(losses.into_iter().map(f64::from).collect())
        };
        Ok(body(
            &mut LoadedModel { answer: &mut ask, together: &mut together, losses: &mut losses },
            observer,
        ))
    }
}

/// Name and revision of the base.
fn base_of(
    choice: ModelChoice<'_>,
    adapter: Option<&peft::Adapter>,
    origin: Option<&Origin>,
) -> Result<(String, Option<String>), Error> {
    if let Some(base) = choice.base {
        return Ok((base.to_owned(), choice.revision.map(str::to_owned)));
    }
    if let Some(origin) = origin {
        return Ok((origin.base.clone(), origin.revision.clone()));
    }
    let Some(config) = adapter.map(peft::Adapter::config) else {
        let message = "no model given: name a run, an adapter or a base model";
        return Err(Error::Choice(message.into()));
    };
    match config.base_model.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => {
            let pinned = config.revision.clone().filter(|_| !Path::new(name).is_dir());
            Ok((name.to_owned(), pinned))
        }
        None => Err(Error::Choice("the adapter does not name its base model: add `--base MODEL`".into())),
    }
}

/// The adapter and its targets, if it fits the base. Hashes are left to `tune merge`: reading all weights twice would
/// delay the first answer too long.
fn fitted(adapter: peft::Adapter, base: &OpenedBase) -> Result<(peft::Adapter, Vec<Target>), Error> {
    if let Some(trained) = adapter.metadata().get(FAMILY_KEY)
        && trained != base.spec.family
    {
        return Err(Error::Choice(format!(
            "the adapter in {} was trained on a {trained} model; {} is a {} model. Name the adapter's base with `--base`",
            adapter.folder().display(),
            base.name(),
            base.spec.family
        )));
    }
    let targets = adapter.targets(&base.spec.modules())?;
    Ok((adapter, targets))
}

/// Tokenizer and template of a base.
fn text_of(base: &ModelDir) -> Result<Text, Error> {
    let files = base.tokenizer_files()?;
    if !base.has_tokenizer() {
        return Ok(Text { files, tokenizer: None, template: None });
    }
    let tokenizer = Tokenizer::open(base.root()).map_err(DataError::from)?;
    let template = ChatTemplate::open(None, base.root(), &tokenizer).map_err(DataError::from)?;
    Ok(Text { files, tokenizer: Some(tokenizer), template })
}

/// The tokens that end an answer: the tokenizer's EOS, the end tokens of generation_config.json (else config.json, where
/// those of a model with towers stand in the text decoder's part), and the template's end of turn.
pub(super) fn end_tokens(
    tokenizer: Option<&Tokenizer>,
    template: Option<&ChatTemplate>,
    model: &ModelDir,
) -> Vec<u32> {
    let mut ends = tokenizer.map_or(Vec::new(), |tokenizer| ends_of_text(tokenizer, template));
    ends.extend(configured_ends(model));
    ends.sort_unstable();
    ends.dedup();
    ends
}
