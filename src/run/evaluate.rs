//! `tune eval`: a base and the adapter on it, measured on rows they were not trained on: loss, answers compared with known
//! ones, and which answer of a pair is preferred.

use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::inference::{LoadedModel, ModelChoice, OpenedModel, Side};
use super::open::open;
use super::prompts::{Prompt, PromptStyle};
use super::verdict::Losses;
pub use super::verdict::{Extraction, Loss, Share};
use super::{Environment, Error};
use crate::data::batch::MicroBatch;
use crate::data::corpus::{Corpus, Language};
use crate::data::example::{Conversation, Example, Message, RowId};
use crate::data::spec::{DatasetSpec, Format, Spec, Split};
use crate::generate::Sampling;
use crate::generate::answer::{Heard, Request};
use crate::generate::memory::Extent;
use crate::generate::together::MOST_TOGETHER;
use crate::recipe::RecipeFile;
use crate::train::event::{Event, Observer};

/// Rows that go through the model together.
const ROWS_AT_ONCE: usize = 4;

/// The answer of a GSM8K solution.
pub const GSM8K_ANSWER: &str = "#### (-?[0-9.,]+)";

/// The source of the rows, and of the model where the choice names none.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A finished run: its recipe's held-out rows, its base, its adapter.
    Run(&'a Path),
    /// A recipe: its held-out rows and its base.
    Recipe(&'a Path),
    /// The choice alone names the model; the rows come from a dataset.
    Choice,
}

impl<'a> Subject<'a> {
    /// The subject that a path names.
    pub fn of(path: Option<&'a Path>) -> Self {
        match path {
            None => Self::Choice,
            Some(path) if path.is_dir() => Self::Run(path),
            Some(path) => Self::Recipe(path),
        }
    }
}

/// How answers are generated and judged.
#[derive(Clone, Debug)]
pub struct Matching {
    /// Finds the answer in the model's text and in the known one.
    pub extraction: Extraction,
    /// Whether prompts that are texts are rendered by the chat template as a user's message; else they are used as they are.
    pub as_chat: bool,
    /// Longest answer.
    pub max_new_tokens: usize,
    /// Texts that end an answer.
    pub stops: Vec<String>,
}

/// What is measured on the rows.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Rows at most, the first.
    pub limit: Option<u64>,
    /// Answers to be matched; `None`: loss alone.
    pub matching: Option<Matching>,
}

/// Rows to evaluate, and the model to evaluate; nothing is loaded yet.
pub struct Evaluation {
    /// The model.
    pub opened: OpenedModel,
    /// Where the rows come from.
    pub origin: String,
    corpus: Corpus,
    options: Options,
}

/// The results of one of the two models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Over supervised tokens; of pairs, those of the chosen answers.
    #[serde(flatten)]
    pub loss: Loss,
    /// Rows whose answer equals the known one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact_match: Option<Share>,
    /// Pairs whose chosen answer has the higher log-probability per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefers_chosen: Option<Share>,
}

/// The results of an evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where the rows come from.
    pub origin: String,
    /// Rows evaluated.
    pub rows: u64,
    /// Their supervised tokens.
    pub supervised_tokens: u64,
    /// The base alone.
    pub base: Measured,
    /// The base with its adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Measured>,
    /// Rows that only the base gets right, and rows that only the adapter does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only_one_right: Option<[u64; 2]>,
    /// Pairs whose chosen answer gained more log-probability by the adapter than the rejected one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_accuracy: Option<Share>,
    /// Each row, for a file.
    #[serde(skip)]
    pub lines: Vec<Value>,
}

impl Evaluation {
    /// Finds model and rows and checks that they fit together; loads nothing.
    ///
    /// # Errors
    /// Either cannot be used; no row is held out; answers are to be matched in rows that have none.
    pub fn open(
        subject: Subject<'_>,
        choice: ModelChoice<'_>,
        data: Option<DatasetSpec>,
        options: Options,
        environment: &Environment<'_>,
    ) -> Result<Self, Error> {
        let (opened, corpus, origin) = match (subject, data) {
            (Subject::Choice, None) => {
                let message =
                    "no rows to evaluate: name a run or a recipe, or a dataset (`--data`, `--format`)";
                return Err(Error::Choice(message.into()));
            }
            (Subject::Choice, Some(data)) => {
                let opened = OpenedModel::open(choice, environment)?;
                let corpus = corpus_of(&opened, None, data.clone())?;
                (opened, corpus, data.path)
            }
            (Subject::Run(path), data) => {
                let choice = ModelChoice { adapter: choice.adapter.or(Some(path)), ..choice };
                of_recipe(&path.join("recipe.toml"), choice, data, environment)?
            }
            (Subject::Recipe(path), data) => of_recipe(path, choice, data, environment)?,
        };
        if options.matching.is_some() {
            // Without a tokenizer no answer can be decoded; this is reported before loading.
            opened.tokenizer()?;
        }
        Ok(Self { opened, origin, corpus, options })
    }

    /// Rows that will be evaluated, but for those that are left out by `on_overflow` and `on_empty`.
    pub fn rows(&self) -> u64 {
        let rows = self.corpus.validation_rows();
        self.options.limit.map_or(rows, |limit| limit.min(rows))
    }

    /// Loads the model and evaluates.
    ///
    /// # Errors
    /// The model cannot be loaded, a row cannot be used, a loss is not finite, or the evaluation was asked to stop.
    pub fn run<O: Observer>(&self, observer: &mut O, environment: &Environment<'_>) -> Result<Report, Error> {
        let extent = self.extent(environment)?;
        self.opened
            .with_loaded(extent, observer, |model, observer| self.rows_by(model, observer, environment))?
    }

    /// The largest batch and conversation. Reads every row, so that problems are reported before the model is loaded.
    fn extent(&self, environment: &Environment<'_>) -> Result<Extent, Error> {
        let mut extent = Extent::default();
        let mut rows = 0;
        for batch in self.corpus.validation(ROWS_AT_ONCE)? {
            let batch = batch?;
            if rows >= self.rows() {
                break;
            }
            if (environment.stop)() {
                return Err(Error::Stopped);
            }
            extent.row = extent.row.max(batch.input_ids.len());
            for id in first_rows(&batch) {
                rows += 1;
                if let Some(matching) = self.options.matching.as_ref().filter(|_| rows <= self.rows()) {
                    let question = self.question(id, matching, &self.place(id))?;
                    let tokens = question.prompt.len().saturating_add(matching.max_new_tokens);
                    extent.conversation = extent.conversation.max(tokens.min(self.opened.context()));
                }
            }
        }
        // One of the two models answers at a time.
        let answers = if self.options.matching.is_some() { rows.min(self.rows()) } else { 0 };
        extent.lanes = usize::try_from(answers).unwrap_or(usize::MAX).min(MOST_TOGETHER);
        Ok(extent)
    }

    fn rows_by(
        &self,
        model: &mut LoadedModel<'_>,
        observer: &mut dyn Observer,
        environment: &Environment<'_>,
    ) -> Result<Report, Error> {
        let sides: &[Side] = match self.opened.adapter {
            Some(_) => &[Side::Base, Side::Adapted],
            None => &[Side::Base],
        };
        let mut tallies = vec![Tally::default(); sides.len()];
        let (mut rows, mut supervised_tokens, mut lines) = (0, 0, Vec::new());
        let mut questions = Vec::new();
        let (mut pairs, mut rewarded) = (0, 0);
        'rows: for batch in self.corpus.validation(ROWS_AT_ONCE)? {
            let batch = batch?;
            if rows >= self.rows() {
                break;
            }
            observer.observe(&Event::Evaluating { done: rows, total: self.rows() });
            if (environment.stop)() {
                return Err(Error::Stopped);
            }
            let sums = sides.iter().map(|side| model.losses(*side, &batch)).collect::<Result<Vec<_>, _>>()?;
            let lengths: Vec<u64> = batch.lengths().collect();
            for (id, documents) in first_rows(&batch).zip(batch.groups()) {
                if rows >= self.rows() {
                    break 'rows;
                }
                let place = self.place(id);
                let (first, lengths) = (documents.start, &lengths[documents.clone()]);
                let mut line = json!({"row": rows, "place": place, "supervised_tokens": lengths[0]});
                if let Some(matching) = &self.options.matching {
                    let question = self.question(id, matching, &place)?;
                    line["reference"] = question.reference.clone().into();
                    line["expected"] = question.expected.clone().into();
                    questions.push(question);
                }
                for ((side, tally), sums) in sides.iter().zip(&mut tallies).zip(&sums) {
                    let sums = &sums[documents.clone()];
                    if let Some(value) = sums.iter().copied().find(|value| !value.is_finite()) {
                        return Err(Error::NotFinite { place, value });
                    }
                    tally.losses.push(sums[0], lengths[0]);
                    let mean = |at: usize| sums[at] / lengths[at].max(1) as f64;
                    let mut said = json!({"loss": mean(0)});
                    if sums.len() == 2 {
                        tally.prefers_chosen += u64::from(mean(0) < mean(1));
                        said["logp_chosen"] = (-sums[0]).into();
                        said["logp_rejected"] = (-sums[1]).into();
                    }
                    line[name(*side)] = said;
                }
                if documents.len() == 2 {
                    pairs += 1;
                    if let [base, adapter] = &sums[..] {
                        let gained = |at: usize| base[at] - adapter[at];
                        rewarded += u64::from(gained(first) > gained(first + 1));
                    }
                }
                lines.push(line);
                rows += 1;
                supervised_tokens += lengths[0];
            }
        }
        observer.observe(&Event::Evaluating { done: rows, total: rows });
        if rows == 0 {
            return Err(Error::NoRows { origin: self.origin.clone() });
        }
        let matched = self.options.matching.is_some();
        let mut differ = [0, 0];
        if let Some(matching) = &self.options.matching {
            let mut right = Vec::with_capacity(sides.len());
            for (side, tally) in sides.iter().zip(&mut tallies) {
                let judged = self.judge(&questions, matching, *side, model, observer, environment)?;
                tally.right = judged.iter().filter(|judged| judged.correct).count() as u64;
                right.push(judged.iter().map(|judged| judged.correct).collect::<Vec<_>>());
                for (line, judged) in lines.iter_mut().zip(judged) {
                    let said: &mut Value = &mut line[name(*side)];
                    said["response"] = judged.response.into();
                    said["finish"] = judged.finish.into();
                    said["extracted"] = judged.extracted.into();
                    said["correct"] = judged.correct.into();
                }
            }
            if let [base, adapter] = &right[..] {
                for (base, adapter) in base.iter().zip(adapter) {
                    differ[0] += u64::from(*base && !adapter);
                    differ[1] += u64::from(*adapter && !base);
                }
            }
        }
        let mut measured = tallies.into_iter().map(|tally| Measured {
            loss: tally.losses.together(),
            exact_match: matched.then(|| Share::new(tally.right, rows)),
            prefers_chosen: (pairs > 0).then(|| Share::new(tally.prefers_chosen, pairs)),
        });
        let Some(base) = measured.next() else { return Err(Error::Unopened) };
        let adapter = measured.next();
        Ok(Report {
            origin: self.origin.clone(),
            rows,
            supervised_tokens,
            base,
            only_one_right: (matched && adapter.is_some()).then_some(differ),
            reward_accuracy: (pairs > 0 && adapter.is_some()).then(|| Share::new(rewarded, pairs)),
            adapter,
            lines,
        })
    }

    fn place(&self, id: RowId) -> String {
        match self.corpus.datasets().nth(id.dataset as usize) {
            Some(dataset) => dataset.place(id.row).to_string(),
            None => format!("row {} of dataset {}", id.row, id.dataset),
        }
    }

    /// Prompt and known answer of a row.
    fn question(&self, id: RowId, matching: &Matching, place: &str) -> Result<Question, Error> {
        let wrong = |message: String| Error::Prompt { place: place.to_owned(), message };
        let Some(dataset) = self.corpus.datasets().nth(id.dataset as usize) else {
            return Err(Error::Unopened);
        };
        let example = dataset.example(id.row).map_err(crate::data::error::Error::from)?;
        let raw = PromptStyle { raw: true, system: None };
        let (prompt, style, reference) = match example {
            Example::PromptCompletion { prompt, completion } => {
                let style = if matching.as_chat { PromptStyle::default() } else { raw };
                (Prompt::Text(prompt), style, completion)
            }
            Example::Conversation(Conversation { mut messages, context, .. }) => match messages.pop() {
                Some(last) if last.role == "assistant" && !messages.is_empty() => (
                    Prompt::Messages(messages.into_iter().map(value_of).collect(), context),
                    PromptStyle::default(),
                    last.content,
                ),
                _ => return Err(wrong("the last message is not an assistant's answer to something".into())),
            },
            Example::Preference { .. }
            | Example::Feedback { .. }
            | Example::Text(_)
            | Example::Tokens { .. } => {
                return Err(wrong(
                    "answers are matched in rows with a prompt and an answer: `messages`, `alpaca`, \
                     `prompt-completion`"
                        .into(),
                ));
            }
        };
        let Some(expected) = matching.extraction.find(&reference) else {
            return Err(wrong(format!(
                "`{}` finds no answer in the known one; name another pattern with `--extract`",
                matching.extraction.pattern()
            )));
        };
        let prompt = self.opened.encode(&prompt, style).map_err(|error| wrong(error.to_string()))?;
        Ok(Question { prompt, reference, expected })
    }

    /// The answers of one model to all questions.
    fn judge(
        &self,
        questions: &[Question],
        matching: &Matching,
        side: Side,
        model: &mut LoadedModel<'_>,
        observer: &mut dyn Observer,
        environment: &Environment<'_>,
    ) -> Result<Vec<Judged>, Error> {
        let sampling = Sampling::greedy(matching.max_new_tokens, self.opened.end_tokens.clone());
        let requests = questions.iter().map(|question| Request {
            prompt: &question.prompt,
            sampling: &sampling,
            stops: &matching.stops,
        });
        let requests: Vec<_> = requests.collect();
        let mut judged: Vec<Option<Judged>> = questions.iter().map(|_| None).collect();
        let (mut done, total) = (0, questions.len() as u64);
        let answered = model.answer_together(side, &requests, &mut |row, heard| {
            if (environment.stop)() {
                return ControlFlow::Break(());
            }
            if let Heard::Answer(answer) = heard {
                let extracted = matching.extraction.find(&answer.text);
                let correct = extracted.as_ref() == Some(&questions[row].expected);
                let finish = answer.ending.name();
                judged[row] = Some(Judged { response: answer.text, finish, extracted, correct });
                done += 1;
                observer.observe(&Event::Evaluating { done, total });
            }
            ControlFlow::Continue(())
        });
        answered.map_err(|failed| failed.1)?;
        judged.into_iter().collect::<Option<_>>().ok_or(Error::Stopped)
    }
}

/// The name of a model in a row's line.
fn name(side: Side) -> &'static str {
    match side {
        Side::Base => "base",
        Side::Adapted => "adapter",
    }
}

#[derive(Clone, Debug, Default)]
struct Tally {
    losses: Losses,
    right: u64,
    prefers_chosen: u64,
}

/// The row of each group.
fn first_rows(batch: &MicroBatch) -> impl Iterator<Item = RowId> + '_ {
    batch.groups().map(|documents| batch.rows[documents.start])
}

struct Question {
    prompt: Vec<u32>,
    reference: String,
    expected: String,
}

struct Judged {
    response: String,
    finish: &'static str,
    extracted: Option<String>,
    correct: bool,
}

/// A message as a template's input.
fn value_of(message: Message) -> Value {
    let mut value = json!({"role": message.role, "content": message.content});
    if let Value::Object(fields) = &mut value {
        fields.extend(message.extra);
    }
    value
}

/// Model and rows of a recipe, or its model and other rows.
fn of_recipe(
    path: &Path,
    choice: ModelChoice<'_>,
    data: Option<DatasetSpec>,
    environment: &Environment<'_>,
) -> Result<(OpenedModel, Corpus, String), Error> {
    let file = RecipeFile::open(path, &[])?;
    if let Some(data) = data {
        let recipe = file.finish().map_err(|problems| Error::Recipe(problems.into()))?;
        let opened = OpenedModel::of_recipe(&recipe, choice, environment)?;
        let corpus = corpus_of(&opened, Some(&recipe.data), data.clone())?;
        return Ok((opened, corpus, data.path));
    }
    let opened = open(file, environment)?;
    let recipe = &opened.recipe;
    if opened.corpus.validation_rows() == 0 {
        return Err(Error::Choice(format!(
            "{} holds no rows out (`data.val_split`, or a `[[dataset]]` with `split = \"validation\"`): name rows with \
             `--data` and `--format`",
            path.display()
        )));
    }
    let opened = OpenedModel::of_recipe(recipe, choice, environment)?;
    let language = Language {
        tokenizer: opened.tokenizer.clone(),
        template: opened.template.clone(),
        vocabulary_size: Some(opened.base.spec.vocab_size),
        positions: Some(opened.context()),
        copies_prompts: !opened.base.spec.takes_prefixes(),
    };
    // Rows keep their own documents, and a batch the same number of them.
    let spec = Spec { packing: false, ..recipe.data.clone() };
    let corpus = Corpus::open(&spec, &recipe.datasets, recipe.seed, language)?;
    Ok((opened, corpus, format!("held-out rows of {}", path.display())))
}

/// Model and held-out rows of a recipe.
///
/// # Errors
/// As [`Evaluation::open`].
pub(super) fn held_out_of(
    path: &Path,
    choice: ModelChoice<'_>,
    environment: &Environment<'_>,
) -> Result<(OpenedModel, Corpus, String), Error> {
    of_recipe(path, choice, None, environment)
}

/// The rows of one dataset, as the recipe's `[data]` has them cut and masked.
pub(super) fn corpus_of(
    opened: &OpenedModel,
    spec: Option<&Spec>,
    data: DatasetSpec,
) -> Result<Corpus, Error> {
    let whole = || Spec { max_seq_len: opened.context(), ..Spec::default() };
    let spec = Spec { packing: false, val_split: 0.0, ..spec.cloned().unwrap_or_else(whole) };
    let language = Language {
        tokenizer: opened.tokenizer.clone(),
        template: opened.template.clone(),
        vocabulary_size: Some(opened.base.spec.vocab_size),
        positions: Some(opened.context()),
        copies_prompts: !opened.base.spec.takes_prefixes(),
    };
    Ok(Corpus::held_out(&spec, &[data], 0, language)?)
}

/// A dataset to evaluate on.
pub fn dataset(path: &str, format: Format, fields: &[(String, String)]) -> DatasetSpec {
    let fields = fields.iter().cloned().collect();
    DatasetSpec { split: Split::Validation, fields, ..DatasetSpec::new(path, format) }
}
