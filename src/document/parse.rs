//! From text to the tree, through the `toml` crate's parser, which goes on after an error.
//!
//! A value that cannot be read becomes [`Kind::Broken`], so that one syntax error is reported once, and not again as a
//! wrong type or a missing key. Owns the wording of syntax errors.

use std::ops::Range;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::value::{Entry, Kind, Table, Value};
use super::{Place, Problem, Source};

/// Deepest nesting that is read: every walk over the tree is recursive, and no recipe comes near.
const DEPTH_LIMIT: usize = 32;

/// Syntax errors that are reported; the rest is counted.
const REPORTED: usize = 20;

/// Errors of the parser that are examined; a text with more is not a recipe.
const EXAMINED: usize = 200;

/// The place and message of an error of the parser.
type Fault<'e> = (Range<usize>, &'e str);

/// Reads a whole document. The returned value is always a table, of what could be read.
pub fn parse(source: &Arc<Source>) -> (Value, Vec<Problem>) {
    let (document, errors) = DeTable::parse_recoverable(source.text());
    let mut faults: Vec<Fault<'_>> =
        errors.iter().map(|error| (error.span().unwrap_or(0..0), error.message())).collect();
    faults.sort_by_key(|(span, _)| (span.start, span.end));
    let uncounted = faults.len().saturating_sub(EXAMINED);
    faults.truncate(EXAMINED);
    let spans = faults.iter().map(|(span, _)| span.clone()).collect();
    let mut reading = Reading { source, faults: spans, problems: Vec::new(), enclosures: Vec::new() };
    let kind = Kind::Table(reading.table(document.into_inner(), 0));
    let root = Value { kind, place: Place::end_of(source) };
    let Reading { mut problems, enclosures, .. } = reading;
    problems.extend(explain_all(source, &root, &faults, uncounted, &enclosures));
    (root, problems)
}

/// Reads the text at `span` of `source`, if it is exactly one TOML value.
pub fn parse_value(source: &Arc<Source>, span: Range<usize>) -> Option<(Value, Vec<Problem>)> {
    let parsed = DeValue::parse(source.text().get(span.clone())?).ok()?;
    let mut reading = Reading { source, faults: Vec::new(), problems: Vec::new(), enclosures: Vec::new() };
    let own = parsed.span();
    let mut value = reading.value(own, parsed.into_inner(), 0);
    shift(&mut value, source, span.start);
    let problems = reading
        .problems
        .into_iter()
        .map(|problem| {
            let inner = problem.place().span();
            let place = Place::new(source, inner.start + span.start..inner.end + span.start);
            Problem::new(problem.kind(), place, problem.to_string())
        })
        .collect();
    Some((value, problems))
}

/// Moves every place of a tree that was parsed from the middle of its source.
fn shift(value: &mut Value, source: &Arc<Source>, by: usize) {
    let moved = |place: &Place| Place::new(source, place.span().start + by..place.span().end + by);
    value.place = moved(&value.place);
    match &mut value.kind {
        Kind::Array(items) => items.iter_mut().for_each(|item| shift(item, source, by)),
        Kind::Table(table) => {
            for entry in table.entries_mut() {
                entry.key_place = moved(&entry.key_place);
                shift(&mut entry.value, source, by);
            }
        }
        _ => {}
    }
}

/// The conversion of the parser's tree to ours.
struct Reading<'a> {
    source: &'a Arc<Source>,
    /// Where the syntax errors are.
    faults: Vec<Range<usize>>,
    problems: Vec<Problem>,
    /// The outermost bracketed values with a fault inside.
    enclosures: Vec<Range<usize>>,
}

impl Reading<'_> {
    fn table(&mut self, entries: DeTable<'_>, depth: usize) -> Table {
        let mut table = Table::default();
        for (key, value) in entries {
            let key_place = Place::new(self.source, key.span());
            let span = value.span();
            let value = self.value(span, value.into_inner(), depth + 1);
            table.push(Entry { key: key.into_inner().into_owned(), key_place, value });
        }
        table
    }

    fn value(&mut self, span: Range<usize>, value: DeValue<'_>, depth: usize) -> Value {
        let place = Place::new(self.source, span.clone());
        let bracketed = match value {
            DeValue::Array(_) => place.text().starts_with('['),
            DeValue::Table(_) => place.text().starts_with('{'),
            _ => true,
        };
        if bracketed && self.faults.iter().any(|fault| fault.start <= span.end && span.start <= fault.end) {
            if matches!(value, DeValue::Array(_) | DeValue::Table(_)) {
                self.enclosures.push(span);
            }
            return Value { kind: Kind::Broken, place };
        }
        if depth > DEPTH_LIMIT {
            self.problem("document::too_deep", &place, "nested too deeply");
            return Value { kind: Kind::Broken, place };
        }
        let kind = match value {
            DeValue::String(string) => Kind::String(string.into_owned()),
            DeValue::Boolean(boolean) => Kind::Boolean(boolean),
            DeValue::Datetime(_) => Kind::Date,
            DeValue::Integer(integer) => match i128::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(integer) => Kind::Integer(integer),
                Err(_) => {
                    self.problem("document::number", &place, "this integer is too large");
                    Kind::Broken
                }
            },
            DeValue::Float(float) => match float.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() || !float.as_str().contains(['e', 'E']) => {
                    Kind::Float(number)
                }
                _ => {
                    self.problem("document::number", &place, "this number is too large");
                    Kind::Broken
                }
            },
            DeValue::Array(items) => Kind::Array(
                items
                    .into_iter()
                    .map(|item| {
                        let span = item.span();
                        self.value(span, item.into_inner(), depth + 1)
                    })
                    .collect(),
            ),
            DeValue::Table(table) => Kind::Table(self.table(table, depth)),
        };
        Value { kind, place }
    }

    fn problem(&mut self, code: &'static str, place: &Place, message: &str) {
        self.problems.push(Problem::new(code, place.clone(), message));
    }
}

/// One problem for each error: the parser reports an unclosed bracket once for each line behind it, and some errors in
/// two ways.
fn explain_all(
    source: &Arc<Source>,
    root: &Value,
    faults: &[Fault<'_>],
    uncounted: usize,
    enclosures: &[Range<usize>],
) -> Vec<Problem> {
    let enclosures: Vec<_> = enclosures.iter().map(|span| Enclosure::new(source, span, faults)).collect();
    let mut problems: Vec<Problem> = Vec::new();
    let mut reported: Vec<usize> = Vec::new();
    let mut last_line = 0;
    let mut unreported = uncounted;
    for (span, message) in faults {
        let enclosure = enclosures.iter().find(|enclosure| enclosure.holds(span));
        let problem = match enclosure {
            Some(enclosure) if reported.contains(&enclosure.span.start) => continue,
            Some(enclosure) => {
                reported.push(enclosure.span.start);
                match enclosure.is_unclosed {
                    true => unclosed(source, &enclosure.span),
                    false => explain(source, root, span, message),
                }
            }
            None => {
                let line = Place::new(source, span.clone()).line();
                if line == last_line {
                    continue;
                }
                last_line = line;
                explain(source, root, span, message)
            }
        };
        if problems.len() < REPORTED {
            problems.push(problem);
        } else {
            unreported += 1;
        }
    }
    if unreported > 0 {
        let message = format!("{unreported} more syntax errors; is this file a recipe?");
        problems.push(Problem::new("document::syntax", Place::end_of(source), message).label("up to here"));
    }
    problems
}

/// An outermost bracketed value with faults inside.
struct Enclosure {
    span: Range<usize>,
    is_unclosed: bool,
}

impl Enclosure {
    /// Where the parser finds no closing bracket, everything behind the opening one belongs to the error.
    fn new(source: &Arc<Source>, span: &Range<usize>, faults: &[Fault<'_>]) -> Self {
        let bytes = source.text().as_bytes();
        let closing = if bytes.get(span.start) == Some(&b'{') { b'}' } else { b']' };
        let ends_open = span.end.checked_sub(1).and_then(|last| bytes.get(last)) != Some(&closing);
        let missed = faults
            .iter()
            .filter(|(fault, message)| message.starts_with("unclosed") && fault.start >= span.start)
            .map(|(fault, _)| fault.end)
            .find(|&end| ends_open || end <= span.end);
        match missed {
            Some(end) => Self { span: span.start..end.max(span.end), is_unclosed: true },
            None => Self { span: span.clone(), is_unclosed: false },
        }
    }

    fn holds(&self, fault: &Range<usize>) -> bool {
        self.span.start <= fault.start && fault.end <= self.span.end
    }
}

/// The problem of an unclosed bracket, at the bracket and not at the end of the file.
fn unclosed(source: &Arc<Source>, span: &Range<usize>) -> Problem {
    let (thing, bracket) = match source.text().as_bytes().get(span.start) {
        Some(b'{') => ("inline table", '}'),
        _ => ("array", ']'),
    };
    let place = Place::new(source, span.start..span.start + 1);
    Problem::new("document::syntax", place, format!("this {thing} is never closed"))
        .label("opened here")
        .help(format!("add the missing `{bracket}`"))
}

/// The problem of an error of the parser, with the remedy.
fn explain(source: &Arc<Source>, root: &Value, span: &Range<usize>, message: &str) -> Problem {
    let place = Place::new(source, span.clone());
    let text = place.text().to_owned();
    let line = line_around(source.text(), span.start);
    let problem = |message: &str| Problem::new("document::syntax", place.clone(), message);
    if message.starts_with("duplicate key") {
        let twice = problem(&format!("`{text}` is written twice")).label("again here");
        let twice = match first_writing(root, &text, &place) {
            Some(first) => twice.also(first, "first here"),
            None => twice,
        };
        return twice.help("keep one of them");
    }
    if span.is_empty() && message.starts_with("string values must be quoted") {
        return problem("a value is missing")
            .label("after the `=`")
            .help("leave the key out to get its default");
    }
    if let Some(written) = ["true", "false"].into_iter().find(|word| text.eq_ignore_ascii_case(word)) {
        return problem(&format!("`{text}` is not TOML")).help(format!("write `{written}`"));
    }
    if ["none", "null", "nil", "~"].iter().any(|word| text.eq_ignore_ascii_case(word)) {
        return problem(&format!("TOML has no `{text}`")).help("leave the key out to get its default");
    }
    let glued = source.text().get(..span.start).is_some_and(|before| before.ends_with(char::is_alphanumeric));
    let is_word = text.starts_with(char::is_alphabetic)
        && !glued
        && (message.starts_with("invalid boolean") || message.starts_with("invalid float"));
    if is_word || message.starts_with("string values must be quoted") {
        let quoted = if text.contains('\\') { format!("'{text}'") } else { format!("\"{text}\"") };
        return problem("a string needs quotes").label("not quoted").help(format!("write `{quoted}`"));
    }
    if message.contains("escaped value") || message.contains("unicode") {
        return problem("a backslash in \"…\" begins an escape")
            .help("put a string with backslashes in single quotes: '…'");
    }
    if !line.contains('=') && line.contains(':') {
        return problem("a key and its value are separated by `=`").help("write `key = value`");
    }
    if message.starts_with("invalid float") || message.starts_with("invalid mantissa") {
        return problem("not a number").help("numbers are written like 10, 0.5 or 2e-4");
    }
    problem(message.strip_suffix(", expected nothing").unwrap_or(message))
}

fn line_around(text: &str, at: usize) -> &str {
    let start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
    text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default()
}

/// The other place where `key` is written, if there is exactly one.
fn first_writing(value: &Value, key: &str, not_here: &Place) -> Option<Place> {
    fn collect(value: &Value, key: &str, found: &mut Vec<Place>) {
        match &value.kind {
            Kind::Table(table) => {
                for entry in table.entries() {
                    if entry.key == key {
                        found.push(entry.key_place.clone());
                    }
                    collect(&entry.value, key, found);
                }
            }
            Kind::Array(items) => items.iter().for_each(|item| collect(item, key, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(value, key, &mut found);
    found.retain(|place| place != not_here);
    match found.as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    }
}
