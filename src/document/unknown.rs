//! Unknown keys: which key was most likely meant.

use std::collections::BTreeMap;

use super::{Place, Problem};

/// What another tool's name means here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A key, by its full path (`adapter.lora.rank`).
    Key(String),
    /// A table, by its full path (`quantization.nf4`).
    Table(&'static str),
    /// Neither: why, and what to do.
    Note(&'static str),
}

/// A key that no reader read.
#[derive(Clone, Debug)]
pub(super) struct Unknown {
    /// The path of its table, without indices; empty at the top level.
    pub(super) table: String,
    pub(super) key: String,
    pub(super) is_table: bool,
    pub(super) place: Place,
}

/// The tables of a document and the keys that each of them has.
#[derive(Clone, Debug, Default)]
pub(super) struct Vocabulary {
    tables: BTreeMap<String, Known>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// Written `[[…]]`.
    repeated: bool,
    keys: Vec<&'static str>,
}

impl Vocabulary {
    pub(super) fn add_table(&mut self, table: &str, repeated: bool) {
        self.tables.entry(table.to_owned()).or_default().repeated |= repeated;
    }

    pub(super) fn add_key(&mut self, table: &str, key: &'static str) {
        let known = self.tables.entry(table.to_owned()).or_default();
        if !known.keys.contains(&key) {
            known.keys.push(key);
        }
    }

    /// Whether `key` belongs in a table other than `table`.
    pub(super) fn belongs_elsewhere(&self, table: &str, key: &str) -> bool {
        self.elsewhere(table, key).is_some()
    }

    fn elsewhere(&self, table: &str, key: &str) -> Option<&str> {
        let holds = |(path, known): &(&String, &Known)| path.as_str() != table && known.keys.contains(&key);
        self.tables.iter().find(holds).map(|(path, _)| path.as_str())
    }

    /// The header of a table, as it is written.
    pub(super) fn header(&self, table: &str) -> String {
        match self.tables.get(table) {
            _ if table.is_empty() => "the top level".into(),
            Some(known) if known.repeated => format!("[[{table}]]"),
            _ => format!("[{table}]"),
        }
    }

    /// `key` as it stands in its table: a key, or the header of a table of its own.
    fn written(&self, table: &str, key: &str) -> String {
        let path = join(table, key);
        if self.tables.contains_key(&path) { format!("`{}`", self.header(&path)) } else { format!("`{key}`") }
    }

    /// The problem of an unknown key.
    pub(super) fn explain(&self, unknown: &Unknown, foreign: &dyn Fn(&str) -> Option<Meaning>) -> Problem {
        let Unknown { table, key, is_table, place } = unknown;
        let known = self.tables.get(table).map(|known| known.keys.as_slice()).unwrap_or_default();
        let what = match is_table {
            true => format!("unknown table `[{}]`", join(table, key)),
            false => format!("unknown key `{key}`"),
        };
        let what =
            if *is_table || table.is_empty() { what } else { format!("{what} in `{}`", self.header(table)) };
        let normal = key.to_lowercase().replace('-', "_");
        let help = if let Some(home) = self.elsewhere(table, key) {
            match self.tables.contains_key(&join(home, key)) {
                true => format!("write {}", self.written(home, key)),
                false => format!("`{key}` belongs {}", self.place_name(home)),
            }
        } else if let Some(meaning) = foreign(&normal) {
            self.translate(table, meaning)
        } else if let Some(close) = closest(key, known.iter().copied()) {
            format!("did you mean {}?", self.written(table, close))
        } else if let Some((home, close)) = self.closest_elsewhere(table, key) {
            format!("did you mean {} {}?", self.written(home, close), self.place_name(home))
        } else {
            let list = known.iter().map(|key| self.written(table, key)).collect::<Vec<_>>().join(", ");
            match table.is_empty() {
                true => format!("the keys at the top level are {list}"),
                false => format!("the keys of `{}` are {list}", self.header(table)),
            }
        };
        let code = if *is_table { "recipe::unknown_table" } else { "recipe::unknown_key" };
        let label = if *is_table { "unknown table" } else { "unknown key" };
        Problem::new(code, place.clone(), what).label(label).help(help)
    }

    fn place_name(&self, table: &str) -> String {
        match table.is_empty() {
            true => "at the top, above the first table".into(),
            false => format!("in `{}`", self.header(table)),
        }
    }

    fn translate(&self, table: &str, meaning: Meaning) -> String {
        match meaning {
            Meaning::Note(note) => note.into(),
            Meaning::Table(path) => format!("tune calls it `{}`", self.header(path)),
            Meaning::Key(path) => match path.rsplit_once('.').unwrap_or(("", &path)) {
                (home, key) if home == table => format!("tune calls it `{key}`"),
                ("", key) => format!("tune calls it `{key}`, at the top level"),
                (home, key) => format!("tune calls it `{key}` in `{}`", self.header(home)),
            },
        }
    }

    fn closest_elsewhere(&self, table: &str, key: &str) -> Option<(&str, &'static str)> {
        let others = self.tables.iter().filter(|(path, _)| path.as_str() != table);
        others
            .filter_map(|(path, known)| Some((path.as_str(), closest(key, known.keys.iter().copied())?)))
            .min_by_key(|(_, close)| strsim::damerau_levenshtein(key, close))
    }
}

/// The path of `key` in `table`.
pub(super) fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

/// The word nearest to `typed`, if it is near enough for a typing error.
pub(super) fn closest<'w>(typed: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let typed = typed.to_lowercase().replace('-', "_");
    words
        .map(|word| (strsim::damerau_levenshtein(&typed, &word.replace('-', "_")), word))
        .filter(|(distance, word)| {
            *distance <= (typed.len().max(word.len()) / 3).clamp(1, 4) && *distance < word.len()
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}
