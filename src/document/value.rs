//! A TOML document as a tree in which every key and every value has its place.

use super::Place;

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Its kind and content.
    pub kind: Kind,
    /// Its place; of a table with a header, the header.
    pub place: Place,
}

/// Kind and content of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A string.
    String(String),
    /// An integer, wider than TOML promises so that a range check can name what it refuses.
    Integer(i128),
    /// A float, not necessarily finite.
    Float(f64),
    /// `true` or `false`.
    Boolean(bool),
    /// Any of TOML's dates and times; no recipe needs one.
    Date,
    /// An array, or an array of tables.
    Array(Vec<Value>),
    /// A table in any of its spellings.
    Table(Table),
    /// Not TOML; its syntax error is reported.
    Broken,
}

impl Kind {
    /// The kind with its article, for messages.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Date => "a date",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Broken => "something that is not TOML",
        }
    }
}

/// The entries of a table, in the order written; no key twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    entries: Vec<Entry>,
}

/// One `key = value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key, unquoted.
    pub key: String,
    /// The key's place.
    pub key_place: Place,
    /// The value.
    pub value: Value,
}

impl Table {
    /// The entries in the order written.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of `key`.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The entry of `key`, to change its value.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.key == key)
    }

    /// The entries, to change them in place.
    pub(super) fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.entries
    }

    /// Adds an entry whose key is new.
    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Adds an entry, or replaces the one of the same key.
    pub fn set(&mut self, entry: Entry) {
        match self.get_mut(&entry.key) {
            Some(standing) => *standing = entry,
            None => self.entries.push(entry),
        }
    }
}

impl Value {
    /// The value at a path of keys and, in arrays, indices; if the tree ends before the path does, the last value on it.
    pub fn nearest(&self, path: &[&str]) -> &Self {
        let Some((first, rest)) = path.split_first() else { return self };
        let next = match &self.kind {
            Kind::Table(table) => table.get(first).map(|entry| &entry.value),
            Kind::Array(items) => first.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => None,
        };
        match next {
            Some(value) => value.nearest(rest),
            None => self,
        }
    }
}
