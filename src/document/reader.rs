//! Reading a table key by key: types, ranges, what is missing and what nobody asked for.
//!
//! A value that does not fit is reported, and its default stands in for it, so that what follows can still
//! be checked. A recipe with a problem is never run, so the stand-in is never used for more than that.

use std::fmt::Display;

use super::shape::Misfit;
use super::unknown::{Alias, Unknown, Vocabulary, join};
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
    /// Nothing found yet but `syntax`, in a document that ends at `end`.
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

    /// All problems, unknown keys explained with the names of other tools in `aliases`.
    pub fn into_problems(self, aliases: &[Alias]) -> Vec<Problem> {
        let Self { mut problems, unknown, vocabulary, .. } = self;
        let of_the_broken_part = |unknown: &&Unknown| {
            // After a broken table header, the keys below it stand in the wrong table by no fault of theirs.
            self.broken_from.is_some_and(|from| {
                unknown.place.same_source(&self.end)
                    && unknown.place.span().start >= from
                    && vocabulary.belongs_elsewhere(&unknown.table, &unknown.key)
            })
        };
        let told = unknown.iter().filter(|unknown| !of_the_broken_part(unknown));
        problems.extend(told.map(|unknown| vocabulary.explain(unknown, aliases)));
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

    /// Whether a key that seems to be missing was swallowed by a slip of syntax before it.
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

    fn misfits(&mut self, path: &str, misfits: Vec<Misfit>) {
        self.problems.extend(misfits.into_iter().map(|misfit| {
            let message = format!("`{path}{}`: {}", misfit.inside, misfit.message);
            let problem = Problem::new(misfit.code, misfit.place, message).label(misfit.label);
            match misfit.help {
                Some(help) => problem.help(help),
                None => problem,
            }
        }));
    }
}

/// Whether a value is a table under a header of its own, not one in braces.
fn is_headed(value: &Value) -> bool {
    match &value.kind {
        Kind::Table(_) => !value.place.text().starts_with('{'),
        Kind::Array(items) => {
            !items.is_empty() && items.iter().all(|item| item.place.text().starts_with("[["))
        }
        _ => false,
    }
}

/// One table while it is read. Keys that were never asked for are reported when the reading is over.
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
    /// Reads the value of `key` through a shape.
    pub fn key<T>(
        &mut self,
        key: &'static str,
        shape: impl FnOnce(&Value) -> Result<T, Vec<Misfit>>,
    ) -> Field<'_, T> {
        let read = match self.entry(key) {
            None => Read::Absent,
            Some(entry) => match shape(&entry.value) {
                Ok(value) => Read::Value(value),
                Err(misfits) => {
                    let path = join(&self.display, key);
                    self.findings.misfits(&path, misfits);
                    Read::Unfit
                }
            },
        };
        Field {
            read,
            key,
            table: &self.path,
            header: &self.header,
            is_absent: self.table.is_none(),
            findings: self.findings,
        }
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
                // One pair of brackets too few: what stands in the table can be checked all the same.
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

    /// Whether the table is written at all.
    pub fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Whether anything at all is written in the table.
    pub fn is_empty(&self) -> bool {
        self.table.is_none_or(|table| table.entries().is_empty())
    }

    /// The value of `key` and its place, without judging it.
    pub fn value(&self, key: &str) -> Option<&'t Value> {
        self.table.and_then(|table| table.get(key)).map(|entry| &entry.value)
    }

    /// Where `key` stands, if it does.
    pub fn place_of(&self, key: &str) -> Option<Place> {
        self.table.and_then(|table| table.get(key)).map(|entry| entry.key_place.clone())
    }

    /// Where the table begins: its header, or the end of the document when it is absent.
    pub fn header(&self) -> Place {
        self.header.clone()
    }

    /// Adds a problem of the table's own.
    pub fn report(&mut self, problem: Problem) {
        self.findings.problems.push(problem);
    }

    /// Adds a problem about keys that seem to be missing, unless a slip of syntax swallowed one of them.
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

    /// Lets a room say which keys a table has that is not there to be read; finds no problems.
    fn vocabulary_of<T>(&mut self, path: String, read: impl FnOnce(&mut TableReader<'_, '_>) -> T) -> T {
        let (problems, unknown) = (self.findings.problems.len(), self.findings.unknown.len());
        let end = self.findings.end.clone();
        let result = self.findings.read_table(None, path.clone(), path, end, read);
        self.findings.problems.truncate(problems);
        self.findings.unknown.truncate(unknown);
        result
    }
}

#[derive(Debug)]
enum Read<T> {
    Absent,
    Unfit,
    Value(T),
}

/// A key that was read, and what to make of it when it is absent.
#[derive(Debug)]
#[must_use = "say what an absent key means: `or`, `optional` or `required`"]
pub struct Field<'a, T> {
    read: Read<T>,
    key: &'static str,
    table: &'a str,
    header: &'a Place,
    is_absent: bool,
    findings: &'a mut Findings,
}

impl<T> Field<'_, T> {
    /// The value, or `default`.
    pub fn or(self, default: T) -> T {
        self.optional().unwrap_or(default)
    }

    /// The value, if there is one.
    pub fn optional(self) -> Option<T> {
        match self.read {
            Read::Value(value) => Some(value),
            Read::Absent | Read::Unfit => None,
        }
    }

    /// The value; its absence is a problem, whose way out shows `example`.
    pub fn required(self, example: impl Display) -> Option<T> {
        match self.read {
            Read::Value(value) => Some(value),
            Read::Unfit => None,
            Read::Absent => {
                if !self.findings.swallowed(self.key) {
                    let Self { key, table, .. } = self;
                    let written = self.findings.vocabulary.header(table);
                    let (label, place) = match (table.is_empty(), self.is_absent) {
                        (true, _) => (
                            "the recipe ends here".to_owned(),
                            "at the top, above the first table".to_owned(),
                        ),
                        (false, true) => {
                            (format!("the recipe has no `{written}`"), format!("under `{written}`"))
                        }
                        (false, false) => {
                            (format!("this table has no `{key}`"), format!("under `{written}`"))
                        }
                    };
                    let message = format!("missing key `{}`", join(table, key));
                    let problem = Problem::new("recipe::missing_key", self.header.clone(), message)
                        .label(label)
                        .help(format!("write `{key} = {example}` {place}"));
                    self.findings.problems.push(problem);
                }
                None
            }
        }
    }
}
