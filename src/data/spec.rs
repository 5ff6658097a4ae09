//! The `[data]` table and the `[[dataset]]` entries of a recipe: their keys, and their values.

mod dataset;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Number, Value as Json, json};

use super::template::OWN_VARIABLES;
pub use crate::assets::dataset::Choice;

use crate::document::{
    Key, KeyTable, Kind, Limits, Parsed, Shaped, TableReader, Value, ValueError, Word, Writer, Written, list,
    pairs, path,
};
pub(crate) use dataset::{DATASET, train_on_problem};

/// The `[data]` table.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Longest sequence in tokens; also the size of a pack.
    pub max_seq_len: usize,
    /// Several examples per sequence, attention isolated between them.
    pub packing: bool,
    /// What to do with an example longer than `max_seq_len`.
    pub on_overflow: OnOverflow,
    /// What to do with an example in which no token is supervised.
    pub on_empty: OnEmpty,
    /// Which tokens are supervised; `None`: the default of each dataset's format.
    pub train_on: Option<TrainOn>,
    /// Share of the training rows held out for evaluation, in `[0, 1)`.
    pub val_split: f64,
    /// Visit the rows of an epoch in a pseudo-random order (else file order, datasets in turn).
    pub shuffle: bool,
    /// Replaces the tokenizer's own chat template.
    pub chat_template: Option<ChatTemplateSource>,
    /// Further variables of the chat template, for every conversation; a row's own replace them.
    pub chat_template_kwargs: Option<TemplateKwargs>,
    /// What to do with an assistant turn that its message marks as not to be learned.
    pub on_marked: OnMarked,
    /// What to do with an assistant turn whose thoughts the chat template does not show.
    pub on_hidden_thoughts: OnHiddenThoughts,
    /// What to do with a row that is longer than the model's positions.
    pub on_beyond_positions: OnBeyondPositions,
}

/// Where a chat template named by the recipe comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatTemplateSource {
    /// The built-in ChatML template.
    ChatMl,
    /// A Jinja file.
    File(PathBuf),
}

/// Further variables of a chat template, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateKwargs(pub Map<String, Json>);

/// What happens to an assistant turn that its message marks as not to be learned (`weight = 0`, `train = false`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMarked {
    /// The turn is not supervised; counted.
    Skip,
    /// The turn is supervised as if it had no mark.
    Learn,
    /// Stop with an error that names the rows.
    Error,
}

/// What happens to an assistant turn whose thoughts the chat template does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHiddenThoughts {
    /// The rest of the turn is supervised; counted.
    Learn,
    /// The turn is not supervised; counted.
    Skip,
    /// Stop with an error that names the rows.
    Error,
}

/// What happens to a row that is longer than the positions the model was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBeyondPositions {
    /// Stop with an error that names the rows.
    Error,
    /// Leave the row out, counted and named.
    Drop,
    /// Train on the row, counted and named.
    Learn,
}

/// One `[[dataset]]` entry.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetSpec {
    /// A file, or a glob over files.
    pub path: String,
    /// The shape of a record.
    pub format: Format,
    /// How often each example is seen per epoch; fractions by a deterministic draw.
    pub weight: f64,
    /// Trained on, or held out.
    pub split: Split,
    /// Overrides [`Spec::train_on`] for this dataset.
    pub train_on: Option<TrainOn>,
    /// Canonical field name → the column's name in the files.
    pub fields: BTreeMap<String, String>,
    /// Our role → its names in the files, where they are not the usual ones.
    pub roles: BTreeMap<String, Vec<String>>,
    /// Columns and keys of messages that are left out although other tools give them a meaning.
    pub ignore: Vec<String>,
    /// The prompt, where it is not the format's own.
    pub prompt: PromptSpec,
    /// The files of a dataset of the hub.
    pub hub: Choice,
}

/// How a row of `alpaca` or `prompt-completion` becomes a prompt, where it is not the format's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptSpec {
    /// The prompt, with names of the format's fields in braces (`{instruction}`).
    pub template: Option<String>,
    /// The prompt of rows whose input is empty.
    pub without_input: Option<String>,
    /// Prompt and completion become a user and an assistant turn of the chat template.
    pub chat: bool,
}

impl DatasetSpec {
    /// Rows of `format` to be trained on, everything else at its default.
    pub fn new(path: impl Into<String>, format: Format) -> Self {
        Self {
            path: path.into(),
            format,
            weight: 1.0,
            split: Split::Train,
            train_on: None,
            fields: BTreeMap::new(),
            roles: BTreeMap::new(),
            ignore: Vec::new(),
            prompt: PromptSpec::default(),
            hub: Choice::default(),
        }
    }
}

/// The shape of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A list of chat messages, rendered by the chat template.
    Messages,
    /// `instruction`, optional `input`, `output`, rendered by Alpaca's published prompt.
    Alpaca,
    /// `prompt` and `completion`: texts, joined as they stand, or messages, rendered by the chat template.
    PromptCompletion,
    /// Two answers to one prompt, the preferred one `chosen`, the other `rejected`.
    Preference,
    /// `prompt`, `completion` and a `label`: whether the completion is wanted.
    Feedback,
    /// `text`, all of it supervised.
    Text,
    /// `input_ids` and optional `labels`, taken as they are.
    Tokens,
}

/// Which tokens the loss is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainOn {
    /// Every assistant turn, its end token included.
    Assistant,
    /// The last assistant turn only.
    LastAssistant,
    /// All that follows the prompt.
    Completion,
    /// Everything.
    All,
}

/// Which side of the evaluation a dataset stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Trained on.
    Train,
    /// Held out.
    Validation,
}

/// What happens to an example longer than the sequence length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOverflow {
    /// Stop with an error that names the rows.
    Error,
    /// Leave the example out, counted and named.
    Drop,
    /// Cut the end off, counted and named.
    Truncate,
}

/// What happens to an example without a supervised token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnEmpty {
    /// Stop with an error that names the rows.
    Error,
    /// Leave the example out, counted and named.
    Drop,
}

impl Word for Format {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("messages", Self::Messages),
        ("alpaca", Self::Alpaca),
        ("prompt-completion", Self::PromptCompletion),
        ("preference", Self::Preference),
        ("feedback", Self::Feedback),
        ("text", Self::Text),
        ("tokens", Self::Tokens),
    ];
    const ALIASES: &'static [(&'static str, &'static str)] = &[
        ("chat", "messages"),
        ("chatml", "messages"),
        ("chat_template", "messages"),
        ("conversations", "messages"),
        ("openai", "messages"),
        ("sharegpt", "messages"),
        ("instruct", "alpaca"),
        ("instruction", "alpaca"),
        ("dpo", "preference"),
        ("pairwise", "preference"),
        ("ranking", "preference"),
        ("unpaired_preference", "feedback"),
        ("kto", "feedback"),
        ("completion", "text"),
        ("plain", "text"),
        ("raw", "text"),
        ("input_ids", "tokens"),
        ("tokenized", "tokens"),
    ];
}

impl Word for TrainOn {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("assistant", Self::Assistant),
        ("last-assistant", Self::LastAssistant),
        ("completion", Self::Completion),
        ("all", Self::All),
    ];
    const ALIASES: &'static [(&'static str, &'static str)] = &[
        ("last", "last-assistant"),
        ("output", "completion"),
        ("answer", "completion"),
        ("everything", "all"),
    ];
}

impl Word for Split {
    const WORDS: &'static [(&'static str, Self)] =
        &[("train", Self::Train), ("validation", Self::Validation)];
    const ALIASES: &'static [(&'static str, &'static str)] =
        &[("val", "validation"), ("valid", "validation"), ("eval", "validation"), ("test", "validation")];
}

impl Word for OnOverflow {
    const WORDS: &'static [(&'static str, Self)] =
        &[("error", Self::Error), ("drop", Self::Drop), ("truncate", Self::Truncate)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[("skip", "drop"), ("cut", "truncate")];
}

impl Word for OnMarked {
    const WORDS: &'static [(&'static str, Self)] =
        &[("skip", Self::Skip), ("learn", Self::Learn), ("error", Self::Error)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[("mask", "skip"), ("ignore", "learn")];
}

impl Word for OnHiddenThoughts {
    const WORDS: &'static [(&'static str, Self)] =
        &[("learn", Self::Learn), ("skip", Self::Skip), ("error", Self::Error)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[("mask", "skip"), ("ignore", "learn")];
}

impl Word for OnBeyondPositions {
    const WORDS: &'static [(&'static str, Self)] =
        &[("error", Self::Error), ("drop", Self::Drop), ("learn", Self::Learn)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[("skip", "drop"), ("ignore", "learn")];
}

impl Word for OnEmpty {
    const WORDS: &'static [(&'static str, Self)] = &[("error", Self::Error), ("drop", Self::Drop)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[("skip", "drop")];
}

impl Format {
    /// The canonical names of a record's fields, the ones `fields` maps to columns.
    pub fn field_names(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &[
                "messages",
                "role",
                "content",
                "train",
                "system",
                "tools",
                "documents",
                "chat_template_kwargs",
            ],
            Self::Alpaca => &[
                "instruction",
                "input",
                "output",
                "system",
                "history",
                "tools",
                "documents",
                "chat_template_kwargs",
            ],
            Self::PromptCompletion => &[
                "prompt",
                "completion",
                "role",
                "content",
                "system",
                "history",
                "tools",
                "documents",
                "chat_template_kwargs",
            ],
            Self::Preference => &[
                "prompt",
                "instruction",
                "input",
                "chosen",
                "rejected",
                "role",
                "content",
                "tools",
                "documents",
                "chat_template_kwargs",
            ],
            Self::Feedback => &[
                "prompt",
                "instruction",
                "input",
                "completion",
                "label",
                "role",
                "content",
                "tools",
                "documents",
                "chat_template_kwargs",
            ],
            Self::Text => &["text"],
            Self::Tokens => &["input_ids", "labels"],
        }
    }

    /// What is supervised when the recipe does not say; `None`: the records say so themselves.
    pub fn default_train_on(self) -> Option<TrainOn> {
        match self {
            Self::Messages => Some(TrainOn::Assistant),
            Self::Alpaca | Self::PromptCompletion => Some(TrainOn::Completion),
            Self::Text => Some(TrainOn::All),
            Self::Preference | Self::Feedback | Self::Tokens => None,
        }
    }

    /// The choices of `train_on` that mean something for records of this shape.
    pub fn train_on_choices(self) -> &'static [TrainOn] {
        match self {
            Self::Messages => {
                &[TrainOn::Assistant, TrainOn::LastAssistant, TrainOn::Completion, TrainOn::All]
            }
            Self::Alpaca | Self::PromptCompletion => &[TrainOn::Completion, TrainOn::All],
            Self::Text => &[TrainOn::All],
            Self::Preference | Self::Feedback | Self::Tokens => &[],
        }
    }
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            max_seq_len: 2048,
            packing: true,
            on_overflow: OnOverflow::Error,
            on_empty: OnEmpty::Error,
            train_on: None,
            val_split: 0.0,
            shuffle: true,
            chat_template: None,
            chat_template_kwargs: None,
            on_marked: OnMarked::Skip,
            on_hidden_thoughts: OnHiddenThoughts::Learn,
            on_beyond_positions: OnBeyondPositions::Error,
        }
    }
}

type D = Key<Spec>;

pub(crate) static DATA: KeyTable<Spec> = KeyTable {
    path: "data",
    meaning: "How rows become the sequences that are trained on.",
    keys: &[
        D::count("max_seq_len", 2..=16_777_216, |data| &mut data.max_seq_len)
            .means("Longest sequence in tokens, and the size of a pack.")
            .also(&[
                "sequence_len",
                "max_length",
                "cutoff_len",
                "max_seq_length",
                "model_max_length",
                "max_sequence_length",
                "block_len",
                "seq_len",
                "context_length",
            ]),
        D::flag("packing", |data| &mut data.packing)
            .means("Put several rows into one sequence; attention never crosses from one row to another.")
            .also(&["sample_packing", "pack", "packed", "neat_packing", "use_packing", "multipack"]),
        D::parsed("on_overflow", |data| &mut data.on_overflow)
            .means("What happens to a row longer than `max_seq_len`.")
            .also(&["excess_length_strategy", "truncation", "overflow"]),
        D::parsed("on_empty", |data| &mut data.on_empty)
            .means("What happens to a row in which no token is supervised."),
        D::parsed("train_on", |data| &mut data.train_on)
            .optional("messages: assistant; alpaca and prompt-completion: completion; text: all")
            .means("The tokens that the loss is taken over.")
            .also(&[
                "train_on_inputs",
                "train_on_prompt",
                "train_on_input",
                "completion_only_loss",
                "assistant_only_loss",
                "mask_prompt",
                "train_on_responses_only",
                "roles_to_train",
                "mask_history",
                "train_on_completions",
            ]),
        D::number("val_split", Limits::from(0.0).below(1.0), |data| &mut data.val_split)
            .means("Share of the training rows that is held out for evaluation.")
            .also(&[
                "val_set_size",
                "val_size",
                "eval_split",
                "validation_split",
                "test_size",
                "eval_split_ratio",
                "test_split",
            ]),
        D::flag("shuffle", |data| &mut data.shuffle)
            .means("Visit the rows of each epoch in a pseudo-random order instead of file order.")
            .also(&["shuffle_dataset", "shuffle_merged_datasets", "shuffle_data", "disable_shuffling"]),
        D::parsed("chat_template", |data| &mut data.chat_template)
            .optional("the tokenizer's own")
            .means("Chat template that replaces the tokenizer's own.")
            .also(&["template", "chat_template_jinja", "chat_template_path", "prompt_template"]),
        D::parsed("chat_template_kwargs", |data| &mut data.chat_template_kwargs)
            .optional("none")
            .means("Further variables of the chat template, such as { enable_thinking = false }.")
            .also(&["template_kwargs", "chat_template_args"])
            .added(),
        D::parsed("on_marked", |data| &mut data.on_marked)
            .means("What happens to a turn that its message marks as not to be learned (weight, train, ...).")
            .added(),
        D::parsed("on_hidden_thoughts", |data| &mut data.on_hidden_thoughts)
            .means("What happens to a turn whose thoughts the chat template does not show.")
            .added(),
        D::parsed("on_beyond_positions", |data| &mut data.on_beyond_positions)
            .means("What happens to a row that is longer than the positions the model was made for.")
            .added(),
    ],
    ..KeyTable::NEW
};

impl Spec {
    /// Reads the `[data]` table; absent, every key has its default.
    pub fn read(table: &mut TableReader<'_, '_>) -> Self {
        DATA.read(table)
    }

    /// Writes the table.
    pub fn write(&self, writer: &mut Writer) {
        DATA.write(&mut self.clone(), writer);
    }
}

/// The name of the built-in chat template.
const CHATML: &str = "chatml";

impl Parsed for ChatTemplateSource {
    fn expected() -> String {
        "\"chatml\" or the path of a Jinja file".to_owned()
    }

    fn schema() -> Json {
        json!({"type": "string", "minLength": 1})
    }

    fn read(value: &Value) -> Shaped<Self> {
        match &value.kind {
            Kind::String(name) if name == CHATML => Ok(Self::ChatMl),
            Kind::String(template) if template.contains("{%") || template.contains("{{") => Err(vec![
                ValueError::new(value, "the text of a template does not belong in a recipe", "a template")
                    .help("save it as a .jinja file and name that file"),
            ]),
            _ => Ok(Self::File(path(value)?)),
        }
    }

    fn written(&self) -> String {
        match self {
            Self::ChatMl => CHATML.written(),
            Self::File(file) => file.written(),
        }
    }
}

impl Parsed for TemplateKwargs {
    fn expected() -> String {
        "table of name = value".to_owned()
    }

    fn schema() -> Json {
        json!({"type": "object"})
    }

    fn read(value: &Value) -> Shaped<Self> {
        let all = pairs(json_value)(value)?;
        match all.iter().find(|(name, _)| OWN_VARIABLES.contains(&name.as_str())) {
            Some((name, _)) => {
                let message = format!("every template is given `{name}`; it cannot be set here");
                Err(vec![ValueError::new(value, message, "here")])
            }
            None => Ok(Self(all.into_iter().collect())),
        }
    }

    fn written(&self) -> String {
        Written::written(&Json::Object(self.0.clone()))
    }
}

/// A value of JSON.
fn json_value(value: &Value) -> Shaped<Json> {
    let converted = match &value.kind {
        Kind::String(text) => Some(Json::from(text.as_str())),
        Kind::Integer(integer) => i64::try_from(*integer).ok().map(Json::from),
        Kind::Float(float) => Number::from_f64(*float).map(Json::Number),
        Kind::Boolean(truth) => Some(Json::from(*truth)),
        Kind::Array(_) => return Ok(Json::Array(list(json_value)(value)?)),
        Kind::Table(_) => return Ok(Json::Object(pairs(json_value)(value)?.into_iter().collect())),
        Kind::Broken => return Err(Vec::new()),
        Kind::Date => None,
    };
    let error = || ValueError::new(value, "expected a value that JSON has", "not in JSON");
    converted.ok_or_else(|| vec![error()])
}
