//! `--set key.path=VALUE`: values of the command line laid over those of the file.
//!
//! Each override is a source of its own, so that its problems point at the command line. The result is checked like a
//! file: this module knows no key and no type.

use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::document::{Entry, Kind, Place, Problem, Source, Table, Value, parse_value};

/// Lays the overrides over the tree, in order; a later one wins over an earlier.
pub(super) fn apply(root: &mut Value, overrides: &[String]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, text) in overrides.iter().enumerate() {
        let source = Source::new(index + 1, "--set", text.clone());
        match read(&source) {
            Ok((path, value, more)) => {
                problems.extend(more);
                problems.extend(set(root, &path, value, &mut Vec::new()).err().map(|problem| *problem));
            }
            Err(problem) => problems.push(*problem),
        }
    }
    problems
}

/// A key of the path, and where it was typed.
type Step = (String, Place);

/// The two sides of an override.
fn read(source: &Arc<Source>) -> Result<(Vec<Step>, Value, Vec<Problem>), Box<Problem>> {
    let text = source.text();
    let whole = || Place::new(source, 0..text.len());
    let help = "write `--set key.path=VALUE`, for example `--set train.learning_rate=1e-4`";
    let Some(equals) = equals_sign(text) else {
        let problem = Problem::new("recipe::override", whole(), format!("`--set {text}` has no `=`"));
        return Err(Box::new(problem.label("no `=`").help(help)));
    };
    let (key, rest) = text.split_at(equals);
    let Some(path) = key_path(source, key) else {
        let place = Place::new(source, 0..equals);
        let problem = Problem::new("recipe::override", place, format!("`{key}` is not a key"));
        return Err(Box::new(problem.label("not a key").help(help)));
    };
    let typed = rest.get(1..).unwrap_or_default();
    let start = equals + 1 + (typed.len() - typed.trim_start().len());
    let end = start + typed.trim().len();
    let (value, problems) = parse_value(source, start..end).unwrap_or_else(|| {
        let kind = Kind::String(typed.trim().to_owned());
        (Value { kind, place: Place::new(source, start..end) }, Vec::new())
    });
    Ok((path, value, problems))
}

/// The first `=` outside quotes.
fn equals_sign(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (None, '=') => return Some(at),
            (None, '"' | '\'') => quote = Some(character),
            (Some(open), close) if open == close => quote = None,
            _ => {}
        }
    }
    None
}

/// The keys of a dotted path, read by TOML's own rules.
fn key_path(source: &Arc<Source>, key: &str) -> Option<Vec<Step>> {
    if key.contains(['\n', '\r', '#']) {
        return None;
    }
    let text = format!("{key}=0");
    let mut table = DeTable::parse(&text).ok()?.into_inner();
    let mut path = Vec::new();
    loop {
        let mut entries = std::mem::take(&mut table).into_iter();
        let (key, value) = entries.next()?;
        let place = Place::new(source, key.span());
        path.push((key.into_inner().into_owned(), place));
        match value.into_inner() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}

/// Puts `new` at the end of `path`, making the tables on the way.
fn set(value: &mut Value, path: &[Step], new: Value, walked: &mut Vec<String>) -> Result<(), Box<Problem>> {
    let Some(((key, place), rest)) = path.split_first() else {
        *value = new;
        return Ok(());
    };
    match &mut value.kind {
        Kind::Broken => Ok(()),
        Kind::Table(table) => {
            walked.push(key.clone());
            match table.get_mut(key) {
                Some(entry) if !rest.is_empty() => set(&mut entry.value, rest, new, walked),
                _ => {
                    let mut inner = match rest.first() {
                        None => new.clone(),
                        Some((next, _)) if next == "0" => {
                            Value { kind: Kind::Array(Vec::new()), place: place.clone() }
                        }
                        Some(_) => Value { kind: Kind::Table(Table::default()), place: place.clone() },
                    };
                    set(&mut inner, rest, new, walked)?;
                    table.set(Entry { key: key.clone(), key_place: place.clone(), value: inner });
                    Ok(())
                }
            }
        }
        Kind::Array(items) => {
            let list = walked.join(".");
            let count = items.len();
            let index = key.parse::<usize>().ok().filter(|&index| index <= count);
            let Some(index) = index else {
                let problem = Problem::new("recipe::override", place.clone(), format!("`{list}` is a list"));
                let help = match count {
                    0 => format!("it is empty; `{list}.0` adds an entry"),
                    1 => format!("it has one entry, `{list}.0`; `{list}.1` adds another"),
                    _ => format!(
                        "its entries are `{list}.0` to `{list}.{}`; `{list}.{count}` adds one",
                        count - 1
                    ),
                };
                return Err(Box::new(problem.label("no such entry").help(help)));
            };
            walked.push(key.clone());
            if index == count {
                items.push(Value { kind: Kind::Table(Table::default()), place: place.clone() });
            }
            match items.get_mut(index) {
                Some(item) => set(item, rest, new, walked),
                None => Ok(()),
            }
        }
        other => {
            let message = format!("`{}` is {} and has no keys", walked.join("."), other.noun());
            let problem = Problem::new("recipe::override", place.clone(), message);
            Err(Box::new(problem.label("no such key").also(value.place.clone(), "its value")))
        }
    }
}
