//! A recipe under way: keys that have their value, notes on all that has none, and the text of both.

use std::collections::BTreeMap;
use std::fmt;

use toml::Value as Toml;

use super::source::{Node, Value};
use super::tool::Tool;
use crate::document::Meaning;
use crate::recipe::{VERSION, foreign};

/// What a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Something to decide or fill in before the recipe runs.
    Decide,
    /// It carried over and means something else here.
    Changed,
    /// It did not carry over.
    Left,
}

impl Kind {
    /// What a list of such notes is headed with.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Decide => "To decide before the first run",
            Kind::Changed => "Means something else here",
            Kind::Left => "Did not carry over",
        }
    }
}

/// One setting of the configuration that is not the same here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What kind.
    pub kind: Kind,
    /// The key, with its tables.
    pub key: String,
    /// Its line in the configuration, from 1; 0 where it has none.
    pub line: usize,
    /// What it said, and why that is so; or what it means.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.key, self.text)?;
        if self.line > 0 { write!(formatter, " (line {})", self.line) } else { Ok(()) }
    }
}

/// A configuration that trains what no recipe trains.
pub(super) struct NotTrained {
    pub(super) line: usize,
    pub(super) reason: String,
}

/// A dataset under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Dataset {
    pub(super) path: String,
    pub(super) format: &'static str,
    pub(super) is_held_out: bool,
    pub(super) weight: Option<f64>,
    pub(super) train_on: Option<&'static str>,
    pub(super) fields: BTreeMap<&'static str, String>,
}

/// A recipe under way.
#[derive(Debug, Default)]
pub(super) struct Draft {
    keys: BTreeMap<&'static str, Toml>,
    tables: Vec<&'static str>,
    pub(super) datasets: Vec<Dataset>,
    pub(super) notes: Vec<Note>,
}

/// What a value of one of our keys is. Any other key takes no foreign value as it stands.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Truth,
    Integer,
    Number,
    /// Modules that can be trained as a whole.
    Modules,
}

/// Our keys, in the order of a recipe. Those without a shape take only values that were turned into ours.
const KEYS: [(&str, Option<Shape>); 37] = [
    ("output_dir", Some(Shape::Text)),
    ("seed", Some(Shape::Integer)),
    ("model.base", Some(Shape::Text)),
    ("model.revision", Some(Shape::Text)),
    ("model.compute_dtype", None),
    ("quantization.nf4.block_size", Some(Shape::Integer)),
    ("quantization.nf4.double_quant", Some(Shape::Truth)),
    ("adapter.lora.rank", Some(Shape::Integer)),
    ("adapter.lora.alpha", Some(Shape::Number)),
    ("adapter.lora.dropout", Some(Shape::Number)),
    ("adapter.lora.target_modules", None),
    ("adapter.lora.use_rslora", Some(Shape::Truth)),
    ("adapter.lora.use_dora", Some(Shape::Truth)),
    ("adapter.lora.learning_rate_ratio", Some(Shape::Number)),
    ("adapter.lora.modules_to_save", Some(Shape::Modules)),
    ("adapter.lora.init_from", Some(Shape::Text)),
    ("data.max_seq_len", Some(Shape::Integer)),
    ("data.packing", Some(Shape::Truth)),
    ("data.on_overflow", None),
    ("data.train_on", None),
    ("data.val_split", None),
    ("data.shuffle", Some(Shape::Truth)),
    ("data.chat_template", None),
    ("train.epochs", Some(Shape::Number)),
    ("train.max_steps", Some(Shape::Integer)),
    ("train.micro_batch_size", Some(Shape::Integer)),
    ("train.gradient_accumulation_steps", Some(Shape::Integer)),
    ("train.learning_rate", Some(Shape::Number)),
    ("train.lr_scheduler", None),
    ("train.warmup_ratio", Some(Shape::Number)),
    ("train.warmup_steps", Some(Shape::Integer)),
    ("train.weight_decay", Some(Shape::Number)),
    ("train.max_grad_norm", Some(Shape::Number)),
    ("train.logging_steps", Some(Shape::Integer)),
    ("train.eval_steps", Some(Shape::Integer)),
    ("train.save_steps", Some(Shape::Integer)),
    ("train.save_total_limit", Some(Shape::Integer)),
];

impl Draft {
    /// Gives one of our keys its value, unless it has one.
    pub(super) fn set(&mut self, key: &'static str, value: impl Into<Toml>) {
        debug_assert!(KEYS.iter().any(|(known, _)| *known == key), "{key}");
        self.keys.entry(key).or_insert_with(|| value.into());
    }

    /// What one of our keys has.
    pub(super) fn get(&self, key: &str) -> Option<&Toml> {
        self.keys.get(key)
    }

    /// Takes a value away again.
    pub(super) fn unset(&mut self, key: &str) {
        self.keys.remove(key);
    }

    /// Adds a table that may stay empty.
    pub(super) fn table(&mut self, table: &'static str) {
        if !self.tables.contains(&table) {
            self.tables.push(table);
        }
    }

    /// Notes something of a setting.
    pub(super) fn note(&mut self, kind: Kind, key: &str, node: &Node, text: impl Into<String>) {
        self.notes.push(Note { kind, key: key.to_owned(), line: node.line, text: text.into() });
    }

    /// Notes something that no setting says.
    pub(super) fn remark(&mut self, kind: Kind, key: &str, text: impl Into<String>) {
        self.notes.push(Note { kind, key: key.to_owned(), line: 0, text: text.into() });
    }

    /// A setting that did not carry over: what it said, and why not.
    pub(super) fn left(&mut self, key: &str, node: &Node, reason: &str) {
        self.note(Kind::Left, key, node, format!("`{node}`: {reason}"));
    }

    /// Moves a setting by its name alone: to the key of ours that has the same name or that the recipe's table of
    /// foreign names gives, as it stands. What does not fit is noted.
    pub(super) fn carry(&mut self, key: &str, node: &Node) {
        if node.is_empty() {
            return;
        }
        let name = key.rsplit('.').next().unwrap_or(key).to_lowercase();
        let own = |(ours, _): &&(&'static str, Option<Shape>)| ours.rsplit('.').next() == Some(name.as_str());
        let ours = match KEYS.iter().find(own) {
            Some((ours, _)) => Some(*ours),
            None => match foreign::meaning(&name) {
                Some(Meaning::Key(ours)) => Some(ours),
                Some(Meaning::Note(reason)) => return self.left(key, node, reason),
                Some(Meaning::Table(_)) | None => None,
            },
        };
        let Some((ours, shape)) = ours.and_then(|ours| KEYS.iter().find(|(known, _)| *known == ours)) else {
            let reason = match ours {
                Some(ours) => format!("set `{ours}` by hand"),
                None => "tune has no such setting".to_owned(),
            };
            return self.left(key, node, &reason);
        };
        let value: Option<Toml> = match shape {
            Some(Shape::Text) => node.text().map(Into::into),
            Some(Shape::Truth) => node.truth().map(Into::into),
            Some(Shape::Integer) => node.integer().filter(|number| *number >= 0).map(Into::into),
            Some(Shape::Number) => node.number().map(Into::into),
            Some(Shape::Modules) => node
                .texts()
                .filter(|names| names.iter().all(|name| matches!(name.as_str(), "lm_head" | "embed_tokens")))
                .map(|names| names.into_iter().map(Toml::from).collect::<Vec<_>>().into()),
            None => None,
        };
        match value {
            Some(value) if self.get(ours).is_some_and(|set| *set != value) => {
                self.left(key, node, &format!("another key has set `{ours}` already"));
            }
            Some(value) => self.set(ours, value),
            None => self.left(key, node, &format!("`{ours}` does not take that; set it by hand")),
        }
    }

    /// The recipe's text.
    pub(super) fn recipe(&mut self, file: &str, tool: Tool) -> String {
        self.notes.sort_by_key(|note| (note.kind, note.line));
        let mut text = format!("# Made from {} ({}) by `tune import`.\n", one_line(file), tool.name());
        let mut headed = None;
        for note in &self.notes {
            if headed != Some(note.kind) {
                headed = Some(note.kind);
                text += &format!("#\n# {}:\n", note.kind.title());
            }
            text += &format!("#   {}\n", one_line(&note.to_string()));
        }
        text += &format!("\nversion = {VERSION}\n");
        let mut table = "";
        for (key, _) in KEYS {
            let (of, name) = key.rsplit_once('.').unwrap_or(("", key));
            // Datasets stand between `[data]` and `[train]`, as in every recipe.
            if of == "train" && table != "train" {
                self.write_datasets(&mut text);
            }
            let is_first = of != table;
            let value = self.keys.get(key);
            if is_first && (value.is_some() || of == "train" || self.tables.contains(&of)) {
                table = of;
                text += &format!("\n[{of}]\n");
            }
            if let Some(value) = value {
                text += &format!("{name} = {value}\n");
            }
        }
        text
    }

    fn write_datasets(&self, text: &mut String) {
        for dataset in &self.datasets {
            *text += &format!("\n[[dataset]]\npath = {}\n", Toml::from(dataset.path.as_str()));
            *text += &format!("format = \"{}\"\n", dataset.format);
            if dataset.is_held_out {
                *text += "split = \"validation\"\n";
            }
            if let Some(weight) = dataset.weight {
                *text += &format!("weight = {}\n", Toml::from(weight));
            }
            if let Some(train_on) = dataset.train_on {
                *text += &format!("train_on = \"{train_on}\"\n");
            }
            if !dataset.fields.is_empty() {
                let field =
                    |(ours, theirs): (&&str, &String)| format!("{ours} = {}", Toml::from(theirs.as_str()));
                let fields: Vec<String> = dataset.fields.iter().map(field).collect();
                *text += &format!("fields = {{ {} }}\n", fields.join(", "));
            }
        }
    }
}

/// Nothing of a file ends a comment.
fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// The settings of a configuration, each to be taken once.
pub(super) struct Settings<'a> {
    prefix: String,
    entries: Vec<(&'a str, &'a Node)>,
}

impl<'a> Settings<'a> {
    /// Of a table that messages know by `prefix`.
    pub(super) fn of(node: &'a Node, prefix: &str) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
        let entries = node.entries().iter().map(|(key, node)| (key.as_str(), node)).collect();
        Self { prefix, entries }
    }

    /// The same with the entries of tables of these names among them, as if they stood at the top.
    pub(super) fn flattened(node: &'a Node, tables: &[&str]) -> Self {
        let mut entries = Vec::new();
        for (key, node) in node.entries() {
            match &node.value {
                Value::Map(inner) if tables.contains(&key.as_str()) => {
                    entries.extend(inner.iter().map(|(key, node)| (key.as_str(), node)));
                }
                _ => entries.push((key.as_str(), node)),
            }
        }
        Self { prefix: String::new(), entries }
    }

    /// A setting that says something, taken out.
    pub(super) fn take(&mut self, key: &str) -> Option<&'a Node> {
        let at = self.entries.iter().position(|(name, _)| *name == key)?;
        let (_, node) = self.entries.remove(at);
        (!node.is_empty()).then_some(node)
    }

    /// The first of several names that is there; the others are taken out as well.
    pub(super) fn any(&mut self, keys: &[&'static str]) -> Option<(&'static str, &'a Node)> {
        let mut found = None;
        for key in keys {
            let taken = self.take(key).map(|node| (*key, node));
            found = found.or(taken);
        }
        found
    }

    /// A key as messages name it.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Carries all that is left by its name.
    pub(super) fn carry_rest(self, draft: &mut Draft) {
        for (key, node) in &self.entries {
            draft.carry(&format!("{}{key}", self.prefix), node);
        }
    }
}
