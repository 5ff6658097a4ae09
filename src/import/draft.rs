//! A recipe under way: keys that have their value, notes on all that has none, and the text of both.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeBounds;

use toml::Value as Toml;

use super::source::{Node, Value};
use super::tool::Tool;
use crate::data::roles::role as known_role;
use crate::data::schema::alpaca_prompt;
use crate::document::{KeyDescription, KeyKind, Meaning, TableDescription, Written};
use crate::recipe::{self, VERSION, foreign};

/// What a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Something to decide or fill in before the recipe runs.
    Decide,
    /// It carried over, and means something else here.
    Changed,
    /// It did not carry over.
    Left,
}

impl Kind {
    /// The heading of such notes.
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
    /// Its value and why it did not carry over; or what it means here.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.key, self.text)?;
        if self.line > 0 { write!(formatter, " (line {})", self.line) } else { Ok(()) }
    }
}

/// A configuration that trains what no recipe can.
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
    /// How the other tool makes a prompt of a row.
    pub(super) prompt: String,
    /// `prompt`, `prompt_without_input` and `chat`.
    pub(super) template: Option<String>,
    pub(super) without_input: Option<String>,
    pub(super) is_chat: bool,
    /// Names of speakers, by role.
    pub(super) roles: BTreeMap<&'static str, Vec<String>>,
}

/// A recipe under way.
#[derive(Debug, Default)]
pub(super) struct Draft {
    keys: BTreeMap<String, Toml>,
    tables: Vec<&'static str>,
    pub(super) datasets: Vec<Dataset>,
    pub(super) notes: Vec<Note>,
}

/// Our keys that other tools have too, in the order of a recipe. Datasets are written apart; limits and samples are ours
/// alone.
fn keys() -> impl Iterator<Item = KeyDescription> {
    let ours = |table: &TableDescription| !matches!(table.path, "dataset" | "gate" | "sample");
    recipe::tables().into_iter().filter(ours).flat_map(|table| table.keys)
}

impl Draft {
    /// Gives one of our keys its value, unless it has one.
    pub(super) fn set(&mut self, key: &str, value: impl Into<Toml>) {
        debug_assert!(keys().any(|known| known.path == key), "{key}");
        self.keys.entry(key.to_owned()).or_insert_with(|| value.into());
    }

    /// The value of one of our keys.
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

    /// Adds a note on a setting.
    pub(super) fn note(&mut self, kind: Kind, key: &str, node: &Node, text: impl Into<String>) {
        self.notes.push(Note { kind, key: key.to_owned(), line: node.line, text: text.into() });
    }

    /// Adds a note on a setting that the configuration does not have.
    pub(super) fn remark(&mut self, kind: Kind, key: &str, text: impl Into<String>) {
        self.notes.push(Note { kind, key: key.to_owned(), line: 0, text: text.into() });
    }

    /// Gives a dataset in the format `alpaca` the prompt of its training code, as most tools have it: with a line break
    /// behind `### Response:`.
    pub(super) fn alpaca_prompt(dataset: &mut Dataset) {
        dataset.template = Some(format!("{}\n", alpaca_prompt("{instruction}", "{input}")));
        dataset.without_input = Some(format!("{}\n", alpaca_prompt("{instruction}", "")));
    }

    /// Gives speakers of a dataset a role, unless the reader gives them that role anyway. What is not a role of ours is
    /// noted.
    pub(super) fn roles(
        &mut self,
        key: &str,
        node: &Node,
        dataset: &mut Dataset,
        role: &str,
        names: Vec<String>,
    ) {
        let Some(role) = ["system", "user", "assistant", "tool"].into_iter().find(|known| *known == role)
        else {
            let text =
                format!("`{node}`: rename these speakers in the rows to system, user, assistant or tool");
            return self.note(Kind::Decide, key, node, text);
        };
        let names = names.into_iter().filter(|name| known_role(name, &BTreeMap::new()) != Some(role));
        dataset.roles.entry(role).or_default().extend(names);
        dataset.roles.retain(|_, names| !names.is_empty());
    }

    /// States how the other tool makes a prompt of a dataset's rows, and notes it where a prompt `here` is another.
    pub(super) fn prompt(
        &mut self,
        key: &str,
        node: &Node,
        dataset: &mut Dataset,
        there: impl Into<String>,
        here: Option<&str>,
    ) {
        dataset.prompt = there.into();
        if let Some(here) = here {
            let text =
                format!("the prompt there: {}; here: {here}; compare with `tune inspect`", dataset.prompt);
            self.note(Kind::Changed, key, node, text);
        }
    }

    /// Notes a setting that did not carry over, and why.
    pub(super) fn left(&mut self, key: &str, node: &Node, reason: &str) {
        self.note(Kind::Left, key, node, format!("`{node}`: {reason}"));
    }

    /// Moves a setting by its name alone, as it stands: to the key of ours of the same name, or that declares the name as
    /// foreign. A value that does not fit is noted.
    pub(super) fn carry(&mut self, key: &str, node: &Node) {
        if node.is_empty() {
            return;
        }
        let name = key.rsplit('.').next().unwrap_or(key).to_lowercase();
        // Several objectives have keys of one name.
        let is_objective = |path: &str| path.starts_with("objective.");
        let path = match keys().find(|key| key.name == name && !is_objective(&key.path)) {
            Some(key) => Some(key.path),
            None => match foreign::meaning(&name) {
                Some(Meaning::Key(path)) => Some(path),
                Some(Meaning::Note(reason)) => return self.left(key, node, reason),
                Some(Meaning::Table(_)) | None => None,
            },
        };
        let Some(path) = path else { return self.left(key, node, "tune has no such setting") };
        if is_objective(&path) && !self.tables.iter().any(|table| path.starts_with(&format!("{table}."))) {
            return self.left(key, node, "it belongs to another objective");
        }
        self.carry_as(key, node, &path);
    }

    /// Moves a setting to the key `path` of ours, as it stands. A value that does not fit is noted.
    pub(super) fn carry_as(&mut self, key: &str, node: &Node, path: &str) {
        let Some(ours) = keys().find(|key| key.path == path) else {
            return self.left(key, node, &format!("set `{path}` by hand"));
        };
        let value = value_of(&ours, node);
        let ours = ours.path;
        match value {
            Some(value) if self.get(&ours).is_some_and(|set| *set != value) => {
                self.left(key, node, &format!("another key has set `{ours}` already"));
            }
            Some(value) => self.set(&ours, value),
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
        let mut table = String::new();
        for key in keys().filter(|key| key.path != "version") {
            let KeyDescription { path, name, .. } = key;
            let of = path.rsplit_once('.').map_or("", |(of, _)| of);
            // Datasets stand between `[data]` and `[train]`, as in every recipe.
            if of == "train" && table != "train" {
                self.write_datasets(&mut text);
            }
            let is_first = of != table;
            let value = self.keys.get(&path);
            if is_first && (value.is_some() || of == "train" || self.tables.contains(&of)) {
                table = of.to_owned();
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
            *text += "\n";
            if !dataset.prompt.is_empty() {
                *text += &format!("# The prompt there: {}.\n", one_line(&dataset.prompt));
            }
            *text += &format!("[[dataset]]\npath = {}\n", Toml::from(dataset.path.as_str()));
            *text += &format!("format = \"{}\"\n", dataset.format);
            if dataset.is_held_out {
                *text += "split = \"validation\"\n";
            }
            for (key, prompt) in
                [("prompt", &dataset.template), ("prompt_without_input", &dataset.without_input)]
            {
                if let Some(prompt) = prompt {
                    *text += &format!("{key} = {}\n", prompt.written());
                }
            }
            if dataset.is_chat {
                *text += "chat = true\n";
            }
            if !dataset.roles.is_empty() {
                let roles: Vec<(String, &Vec<String>)> =
                    dataset.roles.iter().map(|(role, names)| ((*role).to_owned(), names)).collect();
                *text += &format!("roles = {}\n", roles.as_slice().written());
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

/// A value of another tool as one of our keys takes it as it stands; `None` if it does not, or if the key takes values
/// with a spelling of our own.
fn value_of(key: &KeyDescription, node: &Node) -> Option<Toml> {
    match &key.kind {
        KeyKind::Text | KeyKind::Path => node.text().map(Into::into),
        KeyKind::Flag => node.truth().map(Into::into),
        KeyKind::Integer(from, to) | KeyKind::PowerOfTwo(from, to) => {
            let fits =
                |number: &i64| u64::try_from(*number).is_ok_and(|number| (*from..=*to).contains(&number));
            node.integer().filter(fits).map(Into::into)
        }
        KeyKind::Number(limits) => node.number().filter(|number| limits.contains(number)).map(Into::into),
        // Modules that can be trained in full.
        KeyKind::List => node
            .texts()
            .filter(|names| names.iter().all(|name| matches!(name.as_str(), "lm_head" | "embed_tokens")))
            .map(|names| names.into_iter().map(Toml::from).collect::<Vec<_>>().into()),
        KeyKind::Parsed(..) => None,
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

    /// Takes a setting out; `None` if it is absent or empty.
    pub(super) fn take(&mut self, key: &str) -> Option<&'a Node> {
        let at = self.entries.iter().position(|(name, _)| *name == key)?;
        let (_, node) = self.entries.remove(at);
        (!node.is_empty()).then_some(node)
    }

    /// Takes several settings out and returns the first that is set.
    pub(super) fn any(&mut self, keys: &[&'static str]) -> Option<(&'static str, &'a Node)> {
        let mut found = None;
        for key in keys {
            let taken = self.take(key).map(|node| (*key, node));
            found = found.or(taken);
        }
        found
    }

    /// Whether a setting is there and sets something.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, node)| *name == key && !node.is_empty())
    }

    /// A key as messages name it.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Carries all remaining settings by their names.
    pub(super) fn carry_rest(self, draft: &mut Draft) {
        for (key, node) in &self.entries {
            draft.carry(&format!("{}{key}", self.prefix), node);
        }
    }
}
