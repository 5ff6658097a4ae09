//! The `[data]` table and the `[[dataset]]` entries of a recipe, as typed values.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;

use crate::document::{
    Kind, Misfit, Problem, TableReader, Value, Word, Writer, integer, number, pairs, path, text, truth, word,
};

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
}

/// Where a chat template named by the recipe comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatTemplateSource {
    /// The built-in ChatML template.
    ChatMl,
    /// A Jinja file.
    File(PathBuf),
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
}

/// The shape of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A list of chat messages, rendered by the chat template.
    Messages,
    /// `instruction`, optional `input`, `output`, rendered by Alpaca's published prompt.
    Alpaca,
    /// `prompt` and `completion`, joined as they stand.
    PromptCompletion,
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

impl Word for OnEmpty {
    const WORDS: &'static [(&'static str, Self)] = &[("error", Self::Error), ("drop", Self::Drop)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[("skip", "drop")];
}

impl Format {
    /// The canonical names of a record's fields, the ones `fields` maps to columns.
    pub fn field_names(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages", "role", "content"],
            Self::Alpaca => &["instruction", "input", "output"],
            Self::PromptCompletion => &["prompt", "completion"],
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
            Self::Tokens => None,
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
            Self::Tokens => &[],
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
        }
    }
}

impl Spec {
    /// Reads the `[data]` table; left out, every value is its default.
    pub fn read(table: &mut TableReader<'_, '_>) -> Self {
        let default = Self::default();
        Self {
            max_seq_len: table.key("max_seq_len", integer(2..=16_777_216)).or(default.max_seq_len),
            packing: table.key("packing", truth).or(default.packing),
            on_overflow: table.key("on_overflow", word).or(default.on_overflow),
            on_empty: table.key("on_empty", word).or(default.on_empty),
            train_on: table.key("train_on", word).optional(),
            val_split: table.key("val_split", number(0.0..1.0)).or(default.val_split),
            shuffle: table.key("shuffle", truth).or(default.shuffle),
            chat_template: table.key("chat_template", chat_template).optional(),
        }
    }

    /// Writes the table with every value.
    pub fn write(&self, writer: &mut Writer) {
        writer.table("data");
        writer.key("max_seq_len", self.max_seq_len);
        writer.key("packing", self.packing);
        writer.key("on_overflow", self.on_overflow.word());
        writer.key("on_empty", self.on_empty.word());
        writer.optional("train_on", self.train_on.map(Word::word));
        writer.key("val_split", self.val_split);
        writer.key("shuffle", self.shuffle);
        match &self.chat_template {
            None => {}
            Some(ChatTemplateSource::ChatMl) => writer.key("chat_template", CHATML),
            Some(ChatTemplateSource::File(file)) => writer.key("chat_template", file),
        }
    }
}

/// The name of the built-in chat template.
const CHATML: &str = "chatml";

fn chat_template(value: &Value) -> Result<ChatTemplateSource, Vec<Misfit>> {
    match &value.kind {
        Kind::String(name) if name == CHATML => Ok(ChatTemplateSource::ChatMl),
        Kind::String(template) if template.contains("{%") || template.contains("{{") => Err(vec![
            Misfit::new(value, "the template itself does not stand in a recipe", "a template")
                .help("save it as a .jinja file and name that file"),
        ]),
        _ => Ok(ChatTemplateSource::File(path(value)?)),
    }
}

impl DatasetSpec {
    /// Reads one `[[dataset]]`; nothing, when it has no path or no format.
    pub fn read(table: &mut TableReader<'_, '_>) -> Option<Self> {
        let path = table.key("path", text).required("\"data/train.jsonl\"");
        let format = table.key("format", word::<Format>).required("\"messages\"");
        let weights = (Bound::Excluded(0.0), Bound::Included(1e6));
        let weight = table.key("weight", number(weights)).or(1.0);
        let split = table.key("split", word).or(Split::Train);
        let train_on = table.key("train_on", word).optional();
        let fields = table.key("fields", pairs(text)).or(Vec::new());
        if let Some(format) = format {
            report_foreign_fields(table, format);
            report_misplaced_train_on(table, format, train_on);
        }
        if let (Split::Validation, true, Some(place)) = (split, weight != 1.0, table.place_of("weight")) {
            let message = "`weight` says how often a row is trained on, and these rows are held out";
            table.report(
                Problem::new("recipe::contradiction", place, message)
                    .label("has no meaning here")
                    .help("remove it, or `split = \"validation\"`"),
            );
        }
        Some(Self {
            path: path?,
            format: format?,
            weight,
            split,
            train_on,
            fields: fields.into_iter().collect(),
        })
    }

    /// Writes the entry with every value.
    pub fn write(&self, writer: &mut Writer) {
        writer.repeated_table("dataset");
        writer.key("path", &self.path);
        writer.key("format", self.format.word());
        writer.key("weight", self.weight);
        writer.key("split", self.split.word());
        writer.optional("train_on", self.train_on.map(Word::word));
        let fields: Vec<_> = self.fields.iter().map(|(ours, theirs)| (ours.clone(), theirs)).collect();
        if !fields.is_empty() {
            writer.key("fields", fields.as_slice());
        }
    }
}

fn report_foreign_fields(table: &mut TableReader<'_, '_>, format: Format) {
    let Some(Kind::Table(fields)) = table.value("fields").map(|value| &value.kind) else { return };
    let (word, names) = (format.word(), format.field_names());
    for entry in fields.entries().iter().filter(|entry| !names.contains(&entry.key.as_str())) {
        let reversed = match &entry.value.kind {
            Kind::String(theirs) if names.contains(&theirs.as_str()) => {
                format!("our name comes first: {{ {theirs} = \"{}\" }}", entry.key)
            }
            _ => format!("its fields are {}", names.join(", ")),
        };
        let message = format!("the format `{word}` has no field `{}`", entry.key);
        let problem = Problem::new("recipe::unknown_field", entry.key_place.clone(), message);
        table.report(problem.label("unknown field").help(reversed));
    }
}

fn report_misplaced_train_on(table: &mut TableReader<'_, '_>, format: Format, train_on: Option<TrainOn>) {
    let (Some(train_on), Some(value)) = (train_on, table.value("train_on")) else { return };
    if !format.train_on_choices().contains(&train_on) {
        table.report(train_on_problem(value, format, train_on));
    }
}

/// What to say about a `train_on` that the records of `format` cannot obey.
pub(crate) fn train_on_problem(value: &Value, format: Format, train_on: TrainOn) -> Problem {
    let (word, chosen) = (format.word(), train_on.word());
    let choices: Vec<_> = format.train_on_choices().iter().map(|c| format!("\"{}\"", c.word())).collect();
    let help = match choices.as_slice() {
        [] => "leave it out: the `labels` column says which tokens are supervised".to_owned(),
        choices => {
            format!("for `{word}` it is {}; left out, each format has its own default", choices.join(" or "))
        }
    };
    Problem::new(
        "recipe::contradiction",
        value.place.clone(),
        format!("`train_on = \"{chosen}\"` does not apply to the format `{word}`"),
    )
    .label("does not apply")
    .help(help)
}
