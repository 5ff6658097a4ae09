//! All datasets of a recipe as one: opened, split into training and held-out rows, and turned into streams of batches.
//! Knows the order of rows; the survey of all rows and the view of single rows have files of their own.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::batch::{Batching, Cursor, MicroBatch, StepBatch};
use super::error::Error;
use super::example::{LEARNED_KEYS, Message, RowId, RowProblem};
use super::order::{EpochPlan, HeldOut, Source, is_held_out};
use super::pack::{Boundary, Packer};
use super::prefetch::{Outlet, Prefetched};
use super::sequence::{FitOutcome, Group, Limits};
use super::source::{Dataset, RowError};
use super::spec::{DatasetSpec, Format, Spec, Split, TrainOn};
use super::template::{ChatTemplate, REASONING, Rules};
use super::token_store::TokenStore;
use super::tokenize::{Examples, Tokenized, Tokenizer};

/// Optimizer steps that are kept ready.
const STEPS_AHEAD: usize = 4;

/// Examples tokenized at a time, in parallel.
const CHUNK: u64 = 64;

/// The optimizer steps of a run, made ahead of training.
pub type StepStream = Prefetched<StepBatch>;

/// The held-out micro-batches, made ahead of evaluation.
pub type ValidationStream = Prefetched<MicroBatch>;

/// All datasets of a recipe. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Corpus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) datasets: Vec<Part>,
    pub(super) examples: Examples,
    pub(super) limits: Limits,
    pub(super) pool: rayon::ThreadPool,
    sources: Vec<Source>,
    packing: bool,
    shuffle: bool,
    seed: u64,
    val_split: f64,
    /// In the first epoch.
    examples_per_epoch: u64,
    /// Bytes of tokens that a survey may keep.
    token_budget: AtomicU64,
    /// The sequences of all rows, where a survey kept them.
    tokens: Mutex<Option<Arc<TokenStore>>>,
}

/// One `[[dataset]]` entry.
#[derive(Debug)]
pub(super) struct Part {
    /// As the recipe names it.
    pub(super) path: String,
    pub(super) dataset: Dataset,
    pub(super) split: Split,
    /// Of a training dataset; all rows of a validation dataset are held out.
    pub(super) held_out: Arc<HeldOut>,
    pub(super) rules: Rules,
    pub(super) format: Format,
}

impl Part {
    /// How many rows are evaluated on.
    fn validation_rows(&self) -> u64 {
        match self.split {
            Split::Train => self.held_out.held(),
            Split::Validation => self.dataset.rows(),
        }
    }
}

/// What examples are made into tokens with.
#[derive(Clone, Debug, Default)]
pub struct Language {
    /// Needed by all formats but `tokens`.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Needed by `messages`.
    pub template: Option<Arc<ChatTemplate>>,
    /// Rows of the model's embedding: every id must be below it.
    pub vocabulary_size: Option<usize>,
    /// Positions that the model was made for.
    pub positions: Option<usize>,
    /// Whether the model needs a copy of a pair's prompt for each answer.
    pub copies_prompts: bool,
}

impl Corpus {
    /// Opens and indexes every dataset and parts its rows. Reads no example.
    ///
    /// # Errors
    /// A dataset that cannot be opened, a format without the tokenizer or template that it needs, a `train_on` that
    /// means nothing for the format of its dataset, no training dataset.
    pub fn open(
        spec: &Spec,
        datasets: &[DatasetSpec],
        seed: u64,
        language: Language,
    ) -> Result<Corpus, Error> {
        Self::index(spec, datasets.iter().map(|entry| (entry, None)), seed, language)?.require_examples()
    }

    /// As [`Corpus::open`], of datasets that are open already.
    ///
    /// # Errors
    /// As [`Corpus::open`].
    pub fn of_opened(
        spec: &Spec,
        datasets: Vec<(DatasetSpec, Dataset)>,
        seed: u64,
        language: Language,
    ) -> Result<Corpus, Error> {
        let (entries, opened): (Vec<DatasetSpec>, Vec<Dataset>) = datasets.into_iter().unzip();
        let entries = entries.iter().zip(opened.into_iter().map(Some));
        Self::index(spec, entries, seed, language)?.require_examples()
    }

    fn require_examples(self) -> Result<Corpus, Error> {
        match self.inner.examples_per_epoch {
            0 => Err(Error::NothingLeft { rows: self.inner.training_rows() }),
            _ => Ok(self),
        }
    }

    /// As [`Corpus::open`], where nothing is to be trained on: datasets to evaluate on are enough.
    ///
    /// # Errors
    /// As [`Corpus::open`].
    pub fn held_out(
        spec: &Spec,
        datasets: &[DatasetSpec],
        seed: u64,
        language: Language,
    ) -> Result<Corpus, Error> {
        Self::index(spec, datasets.iter().map(|entry| (entry, None)), seed, language)
    }

    fn index<'a>(
        spec: &Spec,
        datasets: impl Iterator<Item = (&'a DatasetSpec, Option<Dataset>)>,
        seed: u64,
        language: Language,
    ) -> Result<Corpus, Error> {
        let mut parts = Vec::new();
        let mut sources = Vec::new();
        for (index, (entry, opened)) in (0_u32..).zip(datasets) {
            check_language(entry, &language)?;
            let rules = Rules {
                train_on: train_on(spec, entry)?,
                on_marked: spec.on_marked,
                on_hidden_thoughts: spec.on_hidden_thoughts,
            };
            let dataset = opened.map_or_else(|| Dataset::open(entry), Ok)?;
            let held_out = match entry.split {
                Split::Train => HeldOut::new(seed, index, dataset.rows(), spec.val_split),
                Split::Validation => HeldOut::nothing(dataset.rows()),
            };
            let held_out = Arc::new(held_out);
            if entry.split == Split::Train {
                sources.push(Source {
                    dataset: index,
                    units: dataset.units(),
                    weight: entry.weight,
                    held_out: Arc::clone(&held_out),
                });
            }
            let path = entry.path.clone();
            parts.push(Part { path, dataset, split: entry.split, held_out, rules, format: entry.format });
        }
        // Refuses a weight that no epoch can be planned with, before anything is read.
        let plan = EpochPlan::new(&sources, seed, 0, spec.shuffle)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .thread_name(|index| format!("tokenize-{index}"))
            .build()
            .map_err(|error| Error::Threads { problem: error.to_string() })?;
        Ok(Corpus {
            inner: Arc::new(Inner {
                datasets: parts,
                examples: Examples {
                    tokenizer: language.tokenizer,
                    template: language.template,
                    vocabulary_size: language.vocabulary_size,
                },
                limits: Limits {
                    max_seq_len: spec.max_seq_len,
                    on_overflow: spec.on_overflow,
                    on_empty: spec.on_empty,
                    positions: language.positions,
                    on_beyond_positions: spec.on_beyond_positions,
                    copies_prompts: language.copies_prompts,
                },
                pool,
                sources,
                packing: spec.packing,
                shuffle: spec.shuffle,
                seed,
                val_split: spec.val_split,
                examples_per_epoch: plan.len(),
                token_budget: AtomicU64::new(0),
                tokens: Mutex::new(None),
            }),
        })
    }

    /// Lets the next survey keep the tokens of all rows, if they take at most `budget` bytes: training and evaluation then
    /// read and tokenize nothing again. The batches are the same either way.
    pub fn keep_tokens(&self, budget: u64) {
        self.inner.token_budget.store(budget, Ordering::Relaxed);
    }

    /// Gives the memory of kept tokens back: rows are read and tokenized again when they are needed. Returns whether there
    /// were any.
    pub fn forget_tokens(&self) -> bool {
        self.inner.lock_tokens().take().is_some()
    }

    /// The optimizer steps of a run, from a cursor on ([`Cursor::default`]: from the start). Tokenizing runs on its
    /// own threads. The same cursor gives the same steps, whatever the thread count; starting costs the same
    /// anywhere.
    ///
    /// The first row that cannot be used ends the stream with its error.
    ///
    /// # Errors
    /// `batching` has no end, or the threads cannot be started.
    pub fn steps(&self, batching: &Batching, from: Cursor) -> Result<StepStream, Error> {
        if batching.epochs.is_none() && batching.max_steps.is_none() {
            return Err(Error::Endless);
        }
        let (inner, batching) = (Arc::clone(&self.inner), *batching);
        Prefetched::spawn(STEPS_AHEAD, move |outlet| inner.produce_steps(&batching, from, outlet))
    }

    /// The held-out rows, each exactly once, in file order: those that `val_split` took, and those of the datasets
    /// with `split = "validation"`. Packed and masked as in training.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn validation(&self, micro_batch_size: usize) -> Result<ValidationStream, Error> {
        let inner = Arc::clone(&self.inner);
        Prefetched::spawn(STEPS_AHEAD, move |outlet| inner.produce_validation(micro_batch_size, outlet))
    }

    /// How many rows are evaluated on. Some of them may be left out by `on_overflow` and `on_empty`.
    pub fn validation_rows(&self) -> u64 {
        self.inner.datasets.iter().map(Part::validation_rows).sum()
    }

    /// Examples in the first epoch, each counted as often as it is seen. Some of them may be left out by
    /// `on_overflow` and `on_empty`.
    pub fn examples_per_epoch(&self) -> u64 {
        self.inner.examples_per_epoch
    }

    /// The datasets, in the order of the recipe.
    pub fn datasets(&self) -> impl Iterator<Item = &Dataset> {
        self.inner.datasets.iter().map(|part| &part.dataset)
    }

    /// What examples are made into tokens with.
    pub fn examples(&self) -> &Examples {
        &self.inner.examples
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }
}

impl Inner {
    pub(super) fn plan(&self, epoch: u64) -> Result<EpochPlan, Error> {
        Ok(EpochPlan::new(&self.sources, self.seed, epoch, self.shuffle)?)
    }

    pub(super) fn packer(&self, batching: &Batching) -> Packer {
        let pairs = self.datasets.iter().any(|part| part.format == Format::Preference);
        let sequence_tokens = if pairs { 2 * self.limits.max_seq_len } else { self.limits.max_seq_len };
        Packer::new(batching, self.packing.then_some(sequence_tokens))
    }

    pub(super) fn training_rows(&self) -> u64 {
        self.sources.iter().map(|source| source.held_out.rows()).sum()
    }

    pub(super) fn is_held_out(&self, id: RowId) -> bool {
        match self.part(id).split {
            Split::Train => is_held_out(self.seed, id.dataset, id.row, self.val_split),
            Split::Validation => true,
        }
    }

    pub(super) fn part(&self, id: RowId) -> &Part {
        &self.datasets[id.dataset as usize]
    }

    pub(super) fn tokenize(&self, id: RowId) -> Result<Vec<Tokenized>, RowError> {
        self.tokenize_and_report(id, &mut |_| {})
    }

    /// [`tokenize`](Self::tokenize); `report` gets the names of columns and keys of messages that are not used.
    pub(super) fn tokenize_and_report(
        &self,
        id: RowId,
        report: &mut dyn FnMut(&str),
    ) -> Result<Vec<Tokenized>, RowError> {
        let example = self.part(id).dataset.example_and_unread(id.row, report)?;
        for (messages, template) in
            example.conversations().into_iter().zip(self.examples.template.iter().cycle())
        {
            report_unread_keys(messages, template, report).map_err(|problem| self.row_error(id, problem))?;
        }
        let tokenized = self.examples.tokenize(&example, self.part(id).rules);
        tokenized.map_err(|problem| self.row_error(id, problem))
    }

    /// A place for the tokens of all rows, where they may be kept.
    pub(super) fn new_token_store(&self) -> Option<TokenStore> {
        let rows: Vec<u64> = self.datasets.iter().map(|part| part.dataset.rows()).collect();
        TokenStore::new(&rows, self.token_budget.load(Ordering::Relaxed))
    }

    /// Keeps the tokens of all rows, if all of them fit.
    pub(super) fn keep_tokens(&self, store: Option<TokenStore>) {
        *self.lock_tokens() = store.filter(TokenStore::is_whole).map(Arc::new);
    }

    fn lock_tokens(&self) -> std::sync::MutexGuard<'_, Option<Arc<TokenStore>>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fit(&self, id: RowId, documents: Vec<Tokenized>) -> Result<FitOutcome, RowError> {
        self.limits.fit(id, documents).map_err(|problem| self.row_error(id, problem))
    }

    fn row_error(&self, id: RowId, problem: RowProblem) -> RowError {
        RowError::new(self.part(id).dataset.place(id.row), problem)
    }

    /// The groups of some rows, in order; `None` for those that are left out.
    fn groups(
        &self,
        positions: Range<u64>,
        row: impl Fn(u64) -> Option<RowId> + Sync,
    ) -> Vec<Result<Option<Group>, RowError>> {
        let kept = self.lock_tokens().clone();
        let one = |position| {
            let Some(id) = row(position) else { return Ok(None) };
            match kept.as_ref().and_then(|kept| kept.get(id)) {
                Some(group) => Ok(group),
                None => Ok(self.fit(id, self.tokenize(id)?)?.group()),
            }
        };
        self.pool.install(|| positions.into_par_iter().map(one).collect())
    }

    fn produce_steps(
        &self,
        batching: &Batching,
        from: Cursor,
        outlet: &Outlet<StepBatch>,
    ) -> Result<(), Error> {
        let mut cursor = from;
        while !batching.ends_before(cursor.epoch) && !batching.done(cursor.step) {
            let plan = self.plan(cursor.epoch)?;
            let end = batching.examples_of(cursor.epoch, plan.len());
            let mut step = StepBuilder::new(cursor, plan.len());
            let mut packer = self.packer(batching);
            let mut examples = 0_u64;
            for start in (cursor.position..end).step_by(CHUNK as usize) {
                if outlet.is_closed() {
                    return Ok(());
                }
                let chunk = start..end.min(start + CHUNK);
                let groups = self.groups(chunk.clone(), |position| plan.at(position));
                for (position, group) in chunk.zip(groups) {
                    let Some(group) = group? else { continue };
                    examples += 1;
                    let boundary = packer.place(group.tokens());
                    if boundary == Boundary::Step
                        && let Some(batch) = step.finish(None)
                    {
                        let done = batching.done(batch.step);
                        if !outlet.send(batch) || done {
                            return Ok(());
                        }
                    }
                    step.add(group, boundary, position);
                }
            }
            if examples == 0 && cursor.position == 0 && end == plan.len() {
                return Err(Error::NothingLeft { rows: self.training_rows() });
            }
            let next = Cursor { epoch: cursor.epoch + 1, position: 0, step: step.cursor.step };
            match step.finish(Some((next, end))) {
                Some(batch) => {
                    cursor = batch.cursor;
                    if !outlet.send(batch) {
                        return Ok(());
                    }
                }
                None => cursor = next,
            }
        }
        if cursor.step == 0 && !batching.done(0) {
            return Err(Error::NothingLeft { rows: self.training_rows() });
        }
        Ok(())
    }

    fn produce_validation(&self, micro_batch_size: usize, outlet: &Outlet<MicroBatch>) -> Result<(), Error> {
        let batching =
            Batching { micro_batch_size, gradient_accumulation_steps: 1, epochs: Some(1.0), max_steps: None };
        let mut packer = self.packer(&batching);
        let mut open = MicroBatch::default();
        for (dataset, part) in (0_u32..).zip(&self.datasets) {
            let rows = part.validation_rows();
            let row = |index| {
                let row = match part.split {
                    Split::Train => part.held_out.held_row(index)?,
                    Split::Validation => index,
                };
                Some(RowId { dataset, row })
            };
            for start in (0..rows).step_by(CHUNK as usize) {
                if outlet.is_closed() {
                    return Ok(());
                }
                for group in self.groups(start..rows.min(start + CHUNK), row) {
                    let Some(group) = group? else { continue };
                    if packer.place(group.tokens()) >= Boundary::MicroBatch && open.tokens() > 0 {
                        let full = std::mem::take(&mut open);
                        if !outlet.send(full) {
                            return Ok(());
                        }
                    }
                    open.push(group);
                }
            }
        }
        if open.tokens() > 0 {
            outlet.send(open);
        }
        Ok(())
    }
}

/// Gathers the examples of one optimizer step.
struct StepBuilder {
    micro_batches: Vec<MicroBatch>,
    /// Behind the last example taken.
    cursor: Cursor,
    examples_per_epoch: u64,
}

impl StepBuilder {
    fn new(cursor: Cursor, examples_per_epoch: u64) -> StepBuilder {
        StepBuilder { micro_batches: Vec::new(), cursor, examples_per_epoch }
    }

    fn add(&mut self, group: Group, boundary: Boundary, position: u64) {
        if boundary >= Boundary::MicroBatch || self.micro_batches.is_empty() {
            self.micro_batches.push(MicroBatch::default());
        }
        if let Some(open) = self.micro_batches.last_mut() {
            open.push(group);
        }
        self.cursor.position = position + 1;
    }

    /// The step so far, if there is one. `end_of_epoch`: where the next one begins then, and how many positions of
    /// the epoch are behind us.
    fn finish(&mut self, end_of_epoch: Option<(Cursor, u64)>) -> Option<StepBatch> {
        if self.micro_batches.is_empty() {
            return None;
        }
        let micro_batches = std::mem::take(&mut self.micro_batches);
        self.cursor.step += 1;
        let (position, cursor) = match end_of_epoch {
            None => (self.cursor.position, self.cursor),
            Some((next, position)) => (position, Cursor { step: self.cursor.step, ..next }),
        };
        Some(StepBatch {
            step: self.cursor.step,
            epoch: self.cursor.epoch as f64 + position as f64 / self.examples_per_epoch.max(1) as f64,
            counts: micro_batches.iter().map(MicroBatch::counts).sum(),
            micro_batches,
            cursor,
        })
    }
}

/// Keys of messages that other tools give a meaning.
const MEANINGFUL_KEYS: [&str; 7] = ["tool_calls", "image", "images", "audio", "audios", "video", "videos"];

/// Reports the keys of messages that the chat template never asks for.
///
/// # Errors
/// One of them shapes training elsewhere.
fn report_unread_keys(
    messages: &[Message],
    template: &ChatTemplate,
    report: &mut dyn FnMut(&str),
) -> Result<(), RowProblem> {
    for (index, message) in messages.iter().enumerate() {
        let is_shown = |key: &str| template.source().contains(key) || LEARNED_KEYS.contains(&key);
        // Thoughts that are not shown are counted by the survey.
        let is_unread = |key: &str| !is_shown(key) && !REASONING.contains(&key);
        for (key, _) in message.extra.iter().filter(|(key, _)| is_unread(key)) {
            if MEANINGFUL_KEYS.contains(&key.as_str()) {
                let problem = format!(
                    "the chat template of {} does not show this key; choose a template that does, or train without it by \
                     `ignore = [\"{key}\"]` in the `[[dataset]]`",
                    template.origin()
                );
                return Err(RowProblem::at(format!("/messages/{index}/{key}"), problem));
            }
            report(&format!("messages[].{key}"));
        }
    }
    Ok(())
}

/// As a recipe spells it.
fn format_name(format: Format) -> &'static str {
    match format {
        Format::Messages => "messages",
        Format::Alpaca => "alpaca",
        Format::PromptCompletion => "prompt-completion",
        Format::Preference => "preference",
        Format::Feedback => "feedback",
        Format::Text => "text",
        Format::Tokens => "tokens",
    }
}

fn check_language(entry: &DatasetSpec, language: &Language) -> Result<(), Error> {
    let path = entry.path.clone();
    match entry.format {
        Format::Tokens => Ok(()),
        format if language.tokenizer.is_none() => {
            Err(Error::NoTokenizer { path, format: format_name(format) })
        }
        format if (format == Format::Messages || entry.prompt.chat) && language.template.is_none() => {
            Err(Error::NoTemplate { path })
        }
        Format::Messages
        | Format::Alpaca
        | Format::PromptCompletion
        | Format::Preference
        | Format::Feedback
        | Format::Text => Ok(()),
    }
}

/// What a dataset is trained on: its own word, else that of `[data]` where it means something for the format, else
/// the format's default.
fn train_on(spec: &Spec, entry: &DatasetSpec) -> Result<TrainOn, Error> {
    let reason = match entry.format {
        Format::Text => "all of whose text is supervised",
        Format::Tokens => "whose labels say what is supervised",
        Format::Preference | Format::Feedback => match entry.train_on {
            None => return Ok(TrainOn::Completion),
            Some(_) => "whose answers are what is learned",
        },
        Format::Messages => return Ok(entry.train_on.or(spec.train_on).unwrap_or(TrainOn::Assistant)),
        // The completion is the one and last turn of the assistant.
        Format::Alpaca | Format::PromptCompletion => {
            return Ok(entry.train_on.or(spec.train_on).unwrap_or(TrainOn::Completion));
        }
    };
    match entry.train_on {
        None | Some(TrainOn::All) => Ok(TrainOn::All),
        Some(_) => {
            Err(Error::TrainOn { path: entry.path.clone(), format: format_name(entry.format), reason })
        }
    }
}
