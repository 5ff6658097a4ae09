//! Reading a table key by key: types, ranges, missing and unknown keys.
//!
//! A value that does not fit is reported and replaced by its default, so that the rest can still be checked. A recipe
//! with a problem is never run, so such a default is used for nothing else.

use super::shape::{Shaped, ValueError};
use super::unknown::{Meaning, Unknown, Vocabulary, join};
use super::value::{Entry, Kind, Table, Value};
use super::{Place, Problem};

/// Everything found while a document is read.
#[derive(Debug)]
pub struct Findings {
    problems: Vec<Problem>,
    unknown: Vec<Unknown>,
    vocabulary: Vocabulary,
    end: Place,
    broken_from: Option<usize>,
}

impl Findings {
    /// The syntax errors of a document that ends at `end`, and nothing more yet.
    pub fn new(end: Place, syntax: Vec<Problem>) -> Self {
        let broken_from = syntax
            .iter()
            .filter(|problem| problem.place().same_source(&end))
            .map(|problem| problem.place().span().start)
            .min();
        Self { problems: syntax, unknown: Vec::new(), vocabulary: Vocabulary::default(), end, broken_from }
    }

    /// Reads a document from its top-level table.
    pub fn read<T>(&mut self, root: &Value, read: impl FnOnce(&mut TableReader<'_, '_>) -> T) -> T {
        let table = match &root.kind {
            Kind::Table(table) => Some(table),
            _ => None,
        };
        let header = self.end.clone();
        self.read_table(table, String::new(), String::new(), header, read)
    }

    /// All problems. Unknown keys are explained by `foreign`, which knows the names of other tools.
    pub fn into_problems(self, foreign: impl Fn(&str) -> Option<Meaning>) -> Vec<Problem> {
        let Self { mut problems, unknown, vocabulary, .. } = self;
        let of_the_broken_part = |unknown: &&Unknown| {
            // Below a broken table header, keys are read as part of the table before it.
            self.broken_from.is_some_and(|from| {
                unknown.place.same_source(&self.end)
                    && unknown.place.span().start >= from
                    && vocabulary.belongs_elsewhere(&unknown.table, &unknown.key)
            })
        };
        let explained = unknown.iter().filter(|unknown| !of_the_broken_part(unknown));
        problems.extend(explained.map(|unknown| vocabulary.explain(unknown, &foreign)));
        problems
    }

    fn read_table<T>(
        &mut self,
        table: Option<&Table>,
        path: String,
        display: String,
        header: Place,
        read: impl FnOnce(&mut TableReader<'_, '_>) -> T,
    ) -> T {
        let mut reader = TableReader { findings: self, table, path, display, header, asked: Vec::new() };
        let result = read(&mut reader);
        let TableReader { path, asked, .. } = reader;
        for entry in table.map(Table::entries).unwrap_or_default() {
            if !asked.contains(&entry.key.as_str()) {
                self.unknown.push(Unknown {
                    table: path.clone(),
                    key: entry.key.clone(),
                    is_table: is_headed(&entry.value),
                    place: entry.key_place.clone(),
                });
            }
        }
        result
    }

    /// Whether a key that seems to be missing stands behind a syntax error.
    fn swallowed(&self, key: &str) -> bool {
        let Some(from) = self.broken_from else { return false };
        let text = self.end.source().text();
        let line = text.get(..from).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
        text.get(line..).unwrap_or_default().lines().any(|line| {
            line.trim_start().trim_start_matches('[').strip_prefix(key).is_some_and(|after| {
                after.trim_start().starts_with(['=', ':', ']', '.']) || after.trim().is_empty()
            })
        })
    }

    fn errors(&mut self, path: &str, errors: Vec<ValueError>) {
        self.problems.extend(errors.into_iter().map(|error| {
            let message = format!("`{path}`: {}", error.message);
            let problem = Problem::new(error.code, error.place, message).label(error.label);
            match error.help {
                Some(help) => problem.help(help),
                None => problem,
            }
        }));
    }
}

/// Whether a value is a table under a header, not one in braces.
fn is_headed(value: &Value) -> bool {
    match &value.kind {
        Kind::Table(_) => !value.place.text().starts_with('{'),
        Kind::Array(items) => {
            !items.is_empty() && items.iter().all(|item| item.place.text().starts_with("[["))
        }
        _ => false,
    }
}

/// One table while it is read. Keys that were not read are reported at the end.
#[derive(Debug)]
pub struct TableReader<'t, 'f> {
    findings: &'f mut Findings,
    table: Option<&'t Table>,
    /// The table's path without indices (`dataset`).
    path: String,
    /// The table's path with indices (`dataset.0`).
    display: String,
    header: Place,
    asked: Vec<&'static str>,
}

impl<'t> TableReader<'t, '_> {
    /// The value of `key` through a shape; `None` if it is absent, or does not fit, which is reported.
    pub(super) fn key<T>(&mut self, key: &'static str, shape: impl FnOnce(&Value) -> Shaped<T>) -> Option<T> {
        let entry = self.entry(key)?;
        match shape(&entry.value) {
            Ok(value) => Some(value),
            Err(errors) => {
                let path = join(&self.display, key);
                self.findings.errors(&path, errors);
                None
            }
        }
    }

    /// Reports `key` as missing if it is absent; `example` is a value in TOML.
    pub(super) fn require(&mut self, key: &'static str, example: &str) {
        if self.value(key).is_some() || self.findings.swallowed(key) {
            return;
        }
        let table = &self.path;
        let written = self.findings.vocabulary.header(table);
        let (label, place) = match (table.is_empty(), self.table.is_none()) {
            (true, _) => ("the recipe ends here".to_owned(), "at the top, above the first table".to_owned()),
            (false, true) => (format!("the recipe has no `{written}`"), format!("under `{written}`")),
            (false, false) => (format!("this table has no `{key}`"), format!("under `{written}`")),
        };
        let message = format!("missing key `{}`", join(table, key));
        let problem = Problem::new("recipe::missing_key", self.header.clone(), message)
            .label(label)
            .help(format!("write `{key} = {example}` {place}"));
        self.findings.problems.push(problem);
    }

    /// Reads the table under `key`; an absent one as if it were empty.
    pub fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut TableReader<'_, '_>) -> T) -> T {
        let (path, display) = (join(&self.path, key), join(&self.display, key));
        let entry = self.entry(key);
        self.findings.vocabulary.add_table(&path, false);
        match entry.map(|entry| (&entry.value.kind, &entry.value.place)) {
            Some((Kind::Table(table), place)) => {
                self.findings.read_table(Some(table), path, display, place.clone(), read)
            }
            Some((kind, place)) => {
                if *kind != Kind::Broken {
                    let problem = match kind {
                        Kind::Array(items)
                            if items.iter().all(|item| item.place.text().starts_with("[[")) =>
                        {
                            Problem::new(
                                "recipe::wrong_type",
                                place.clone(),
                                format!("`{path}` is one table"),
                            )
                            .label("a list of tables")
                            .help(format!("write `[{path}]`, once"))
                        }
                        _ => {
                            let found = kind.noun();
                            let message = format!("`{path}`: expected a table, found {found}");
                            Problem::new("recipe::wrong_type", place.clone(), message)
                                .label(found)
                                .help(format!("write `[{path}]` on a line of its own, and its keys below"))
                        }
                    };
                    self.findings.problems.push(problem);
                }
                self.vocabulary_of(path, read)
            }
            None => {
                let end = self.findings.end.clone();
                self.findings.read_table(None, path, display, end, read)
            }
        }
    }

    /// Reads each `[[key]]`.
    pub fn tables<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut TableReader<'_, '_>) -> T,
    ) -> Vec<T> {
        let (path, display) = (join(&self.path, key), join(&self.display, key));
        let entry = self.entry(key);
        self.findings.vocabulary.add_table(&path, true);
        let Some(Entry { value, .. }) = entry else {
            self.vocabulary_of(path, read);
            return Vec::new();
        };
        let Kind::Array(items) = &value.kind else {
            if value.kind != Kind::Broken {
                let found = value.kind.noun();
                let message = format!("`{path}`: expected a list of tables, found {found}");
                let problem = Problem::new("recipe::wrong_type", value.place.clone(), message);
                let help = format!("write `[[{path}]]`: there may be several");
                self.findings.problems.push(problem.label(found).help(help));
            }
            return match &value.kind {
                // `[dataset]` for `[[dataset]]`: its keys can be checked.
                Kind::Table(table) => {
                    let place = value.place.clone();
                    vec![self.findings.read_table(Some(table), path, display, place, read)]
                }
                _ => {
                    self.vocabulary_of(path, read);
                    Vec::new()
                }
            };
        };
        let mut results = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let display = format!("{display}.{index}");
            match &item.kind {
                Kind::Table(table) => {
                    let place = item.place.clone();
                    results.push(self.findings.read_table(
                        Some(table),
                        path.clone(),
                        display,
                        place,
                        &mut read,
                    ));
                }
                Kind::Broken => {}
                kind => {
                    let message = format!("`{display}`: expected a table, found {}", kind.noun());
                    let problem = Problem::new("recipe::wrong_type", item.place.clone(), message);
                    self.findings.problems.push(problem.label(kind.noun()));
                }
            }
        }
        results
    }

    /// Whether the document has the table.
    pub fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the table has no key.
    pub fn is_empty(&self) -> bool {
        self.table.is_none_or(|table| table.entries().is_empty())
    }

    /// The value of `key` as it is written, unchecked.
    pub fn value(&self, key: &str) -> Option<&'t Value> {
        self.table.and_then(|table| table.get(key)).map(|entry| &entry.value)
    }

    /// The place of `key`, if the table has it.
    pub fn place_of(&self, key: &str) -> Option<Place> {
        self.table.and_then(|table| table.get(key)).map(|entry| entry.key_place.clone())
    }

    /// The table's header, or the end of the document if the table is absent.
    pub fn header(&self) -> Place {
        self.header.clone()
    }

    /// Adds a problem.
    pub fn report(&mut self, problem: Problem) {
        self.findings.problems.push(problem);
    }

    /// Adds a problem about missing `keys`, unless one of them stands behind a syntax error.
    pub fn report_missing(&mut self, keys: &[&str], problem: Problem) {
        if !keys.iter().any(|key| self.findings.swallowed(key)) {
            self.findings.problems.push(problem);
        }
    }

    fn entry(&mut self, key: &'static str) -> Option<&'t Entry> {
        self.asked.push(key);
        self.findings.vocabulary.add_key(&self.path, key);
        self.table.and_then(|table| table.get(key))
    }

    /// Records which keys an absent table has; reports no problems.
    fn vocabulary_of<T>(&mut self, path: String, read: impl FnOnce(&mut TableReader<'_, '_>) -> T) -> T {
        let (problems, unknown) = (self.findings.problems.len(), self.findings.unknown.len());
        let end = self.findings.end.clone();
        let result = self.findings.read_table(None, path.clone(), path, end, read);
        self.findings.problems.truncate(problems);
        self.findings.unknown.truncate(unknown);
        result
    }
}
