//! The engine's filters, tests and functions, each asking [`budget`] before it builds something and [`effort`]
//! before it reads. What they compute is the engine's business; here stands only how large it can become.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, State, filters, functions, tests};

use super::budget;
use super::effort;
use super::namespace;
use super::python;

/// Takes what a filter needs at most, judged from its arguments, the value it is applied to first. What it took.
pub(super) type Need = fn(what: &str, arguments: &[Value]) -> Result<u64, Error>;

/// Offers the engine's filters, tests and functions, each behind the budget. Left out are those that show Rust's notation
/// (`pprint`, `debug`) or come from nowhere but this engine (`chain`, `zip`): no template for Jinja2 can mean them.
pub(super) fn offer(environment: &mut Environment<'static>) {
    for (name, filter, need) in filters() {
        let what = format!("the filter `{name}`");
        environment.add_filter(name, move |state: &State<'_, '_>, arguments: Rest<Value>| {
            effort::spend_on(&what, &arguments)?;
            let took = need(&what, &arguments)?;
            budget::eager(&what, budget::text(filter.call(state, &arguments)?, took))
        });
    }
    for (name, test) in tests() {
        let what = format!("the test `{name}`");
        environment.add_test(name, move |state: &State<'_, '_>, arguments: Rest<Value>| {
            effort::spend_on(&what, &arguments)?;
            test.call(state, &arguments).map(|holds| holds.is_true())
        });
    }
    environment.add_function("range", functions::range);
    environment.add_function("dict", |value: Option<Value>, more: Kwargs| {
        let entries = value.as_ref().and_then(Value::len).unwrap_or(0) + more.args().count();
        budget::charge_entries("`dict`", entries as u64)?;
        functions::dict(value, more)
    });
    environment.add_function("namespace", |defaults: Option<Value>| {
        budget::charge_entries("`namespace`", defaults.as_ref().and_then(Value::len).unwrap_or(0) as u64)?;
        namespace::namespace(defaults)
    });
}

fn filters() -> [(&'static str, Value, Need); 43] {
    [
        ("safe", Value::from_function(filters::safe), text),
        ("escape", Value::from_function(filters::escape), escaped),
        ("e", Value::from_function(filters::escape), escaped),
        ("lower", Value::from_function(filters::lower), changed_case),
        ("upper", Value::from_function(filters::upper), changed_case),
        ("title", Value::from_function(filters::title), changed_case),
        ("capitalize", Value::from_function(filters::capitalize), changed_case),
        ("trim", Value::from_function(filters::trim), trimmed),
        ("replace", Value::from_function(filters::replace), replaced),
        ("join", Value::from_function(filters::join), joined),
        ("split", Value::from_function(filters::split), split),
        ("lines", Value::from_function(filters::lines), lines),
        ("indent", Value::from_function(filters::indent), indented),
        ("format", Value::from_function(filters::format), formatted),
        ("reverse", Value::from_function(filters::reverse), reversed),
        ("dictsort", Value::from_function(filters::dictsort), sorted),
        ("items", Value::from_function(filters::items), pairs),
        ("groupby", Value::from_function(filters::groupby), sorted),
        ("unique", Value::from_function(filters::unique), distinct),
        ("list", Value::from_function(filters::list), list),
        ("sort", Value::from_function(filters::sort), sorted),
        ("min", Value::from_function(filters::min), extreme),
        ("max", Value::from_function(filters::max), extreme),
        ("select", Value::from_function(filters::select), list),
        ("reject", Value::from_function(filters::reject), list),
        ("selectattr", Value::from_function(filters::selectattr), by_attribute),
        ("rejectattr", Value::from_function(filters::rejectattr), by_attribute),
        ("map", Value::from_function(filters::map), by_attribute),
        ("slice", Value::from_function(filters::slice), parts),
        ("batch", Value::from_function(filters::batch), parts),
        ("last", Value::from_function(filters::last), last),
        ("first", Value::from_function(filters::first), nothing),
        ("length", Value::from_function(filters::length), nothing),
        ("count", Value::from_function(filters::length), nothing),
        ("default", Value::from_function(filters::default), nothing),
        ("d", Value::from_function(filters::default), nothing),
        ("attr", Value::from_function(filters::attr), key),
        ("sum", Value::from_function(filters::sum), nothing),
        ("round", Value::from_function(filters::round), nothing),
        ("abs", Value::from_function(filters::abs), nothing),
        ("int", Value::from_function(filters::int), nothing),
        ("float", Value::from_function(filters::float), nothing),
        ("bool", Value::from_function(filters::bool), nothing),
    ]
}

/// Beside these there are `in` and the comparisons, which `operators` has, and `iterable`.
fn tests() -> [(&'static str, Value); 25] {
    [
        ("defined", Value::from_function(tests::is_defined)),
        ("undefined", Value::from_function(tests::is_undefined)),
        ("none", Value::from_function(tests::is_none)),
        ("safe", Value::from_function(tests::is_safe)),
        ("escaped", Value::from_function(tests::is_safe)),
        ("boolean", Value::from_function(tests::is_boolean)),
        ("true", Value::from_function(tests::is_true)),
        ("false", Value::from_function(tests::is_false)),
        ("odd", Value::from_function(tests::is_odd)),
        ("even", Value::from_function(tests::is_even)),
        ("divisibleby", Value::from_function(tests::is_divisibleby)),
        ("number", Value::from_function(tests::is_number)),
        ("integer", Value::from_function(tests::is_integer)),
        ("int", Value::from_function(tests::is_integer)),
        ("float", Value::from_function(tests::is_float)),
        ("string", Value::from_function(tests::is_string)),
        ("sequence", Value::from_function(tests::is_sequence)),
        ("mapping", Value::from_function(tests::is_mapping)),
        ("lower", Value::from_function(tests::is_lower)),
        ("upper", Value::from_function(tests::is_upper)),
        ("sameas", Value::from_function(tests::is_sameas)),
        ("filter", Value::from_function(tests::is_filter)),
        ("test", Value::from_function(tests::is_test)),
        // The engine's own write a value out to look at its ends.
        ("startingwith", Value::from_function(|value: &str, start: &str| value.starts_with(start))),
        ("endingwith", Value::from_function(|value: &str, end: &str| value.ends_with(end))),
    ]
}

/// The value an argument has; nothing where it is left out.
fn argument(arguments: &[Value], at: usize) -> Option<&Value> {
    arguments.get(at).filter(|argument| !argument.is_kwargs())
}

/// About how large the text of all arguments is: filters that want a text take anything, and write it out.
fn size(arguments: &[Value]) -> u64 {
    arguments.iter().map(budget::text_size).fold(0, u64::saturating_add)
}

fn text(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    budget::charge(what, size(arguments))
}

/// A character's other case has three at most, none longer than three times the first.
pub(super) fn changed_case(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    effort::spend(what, size(arguments).saturating_mul(effort::CHARACTER))?;
    budget::charge(what, size(arguments).saturating_mul(3))
}

/// `"` becomes `&#34;`, `/` `&#x2f;`.
fn escaped(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    budget::charge(what, size(arguments).saturating_mul(6))
}

/// What is cut off is looked for as a list of characters, four bytes each.
pub(super) fn trimmed(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let (text, cut) = arguments.split_at(1.min(arguments.len()));
    budget::charge(what, size(text).saturating_add(size(cut).saturating_mul(4)))
}

pub(super) fn replaced(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let of = |at: usize| argument(arguments, at).map_or(0, budget::text_size);
    let (text, from, to) = (of(0), of(1), of(2));
    let times = match (
        argument(arguments, 0).and_then(Value::as_str),
        argument(arguments, 1).and_then(Value::as_str),
    ) {
        // Counting costs what replacing does; where nothing grows there is nothing to count.
        (Some(_), Some(_)) if to <= from => 0,
        (Some(text), Some("")) => text.len() as u64 + 1,
        (Some(text), Some(from)) => text.matches(from).count() as u64,
        _ => text.saturating_add(1),
    };
    budget::charge(what, text.saturating_add(times.saturating_mul(to)).saturating_add(from))
}

/// The items of a list one behind the other, with a text between them.
pub(super) fn joined_size(items: &Value, between: u64) -> u64 {
    let most = budget::left();
    let mut size = 0_u64;
    if let Some(text) = items.as_str() {
        return (text.len() as u64).saturating_add((text.len() as u64).saturating_mul(between));
    }
    for item in items.try_iter().into_iter().flatten() {
        size = size.saturating_add(budget::text_size(&item)).saturating_add(between);
        if size > most {
            break;
        }
    }
    size
}

fn joined(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let between = argument(arguments, 1).map_or(0, budget::text_size);
    let items = argument(arguments, 0).map_or(0, |items| joined_size(items, between));
    budget::charge(what, items.saturating_add(between))
}

/// What each part of a text takes beside its bytes: a value, and the frame of a text of its own.
const PART: u64 = 72;

pub(super) fn split(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let Some(value) = argument(arguments, 0) else { return Ok(0) };
    let text = budget::text_size(value);
    let parts = match (value.as_str(), argument(arguments, 1).and_then(Value::as_str)) {
        (Some(text), Some(separator)) => text.matches(separator).count() as u64 + 1,
        (Some(text), None) => text.split_whitespace().count() as u64,
        _ => text,
    };
    budget::charge(what, text.saturating_add(parts.saturating_mul(PART)))
}

pub(super) fn lines(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let Some(value) = argument(arguments, 0) else { return Ok(0) };
    let text = budget::text_size(value);
    let lines = value.as_str().map_or(text, |text| text.lines().count() as u64 * 2);
    budget::charge(what, text.saturating_add(lines.saturating_mul(PART)))
}

fn indented(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let Some(value) = argument(arguments, 0) else { return Ok(0) };
    let named = arguments.last().filter(|last| last.is_kwargs()).and_then(|last| last.get_attr("width").ok());
    let width =
        argument(arguments, 1).cloned().or(named).and_then(|width| width.as_usize()).unwrap_or(4) as u64;
    let text = budget::text_size(value);
    let lines = value.as_str().map_or(text, |text| text.matches('\n').count() as u64).saturating_add(2);
    budget::charge(what, text.saturating_add(lines.saturating_mul(width.saturating_add(1))))
}

/// What a format string can write: its own text, for each place in it the largest argument, and every number in it as
/// a width.
pub(super) fn formatted(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let Some(format) = argument(arguments, 0).and_then(Value::as_str) else { return Ok(0) };
    let places = format.matches(['%', '{']).count() as u64;
    let mut largest = 0;
    let mut widths = 0_u64;
    for value in arguments.get(1..).unwrap_or_default() {
        largest = largest.max(budget::text_size(value));
        // `%*d` takes its width from an argument.
        if format.contains('*') {
            widths = widths.saturating_add(value.as_usize().unwrap_or(0) as u64);
        }
    }
    for digits in format.split(|character: char| !character.is_ascii_digit()) {
        let width = if digits.is_empty() { 0 } else { digits.parse().unwrap_or(u64::MAX) };
        widths = widths.saturating_add(width);
    }
    // A number in full has 340 digits and, grouped, a third more; a width is written in characters.
    let each = largest.saturating_add(512);
    let most = places.saturating_mul(each).saturating_add(widths.saturating_mul(4));
    budget::charge(what, (format.len() as u64).saturating_add(most))
}

fn reversed(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    match argument(arguments, 0) {
        Some(value) if value.as_str().is_some() => budget::charge(what, budget::text_size(value)),
        _ => list(what, arguments),
    }
}

/// Of a list, its last item is found by turning it round.
fn last(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    match argument(arguments, 0) {
        Some(value) if value.kind() == ValueKind::Iterable => list(what, arguments),
        _ => Ok(0),
    }
}

fn list(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let items = argument(arguments, 0).map_or(0, budget::items);
    // A character of a text is a value as well.
    budget::charge_items(what, items)
}

fn nothing(_what: &str, _arguments: &[Value]) -> Result<u64, Error> {
    Ok(0)
}

fn key(_what: &str, arguments: &[Value]) -> Result<u64, Error> {
    argument(arguments, 1).map_or(Ok(()), effort::require_key).map(|()| 0)
}

/// The path to an attribute that a filter is told to look at: `attribute=`, or the first argument.
fn path(arguments: &[Value]) -> Option<Value> {
    let named =
        arguments.last().filter(|last| last.is_kwargs()).and_then(|last| last.get_attr("attribute").ok());
    named.filter(|path| path.as_str().is_some()).or_else(|| argument(arguments, 1).cloned())
}

/// Each comparison looks up the attribute, and goes through what it finds.
fn sorted(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let Some(items) = argument(arguments, 0) else { return Ok(0) };
    let path = path(arguments);
    effort::order(what, items, path.as_ref().and_then(Value::as_str).unwrap_or_default())?;
    pairs(what, arguments)
}

fn extreme(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    argument(arguments, 0).map_or(Ok(()), |items| effort::order(what, items, "")).map(|()| 0)
}

fn by_attribute(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let path = path(arguments).and_then(|path| path.as_str().map(str::len)).unwrap_or(0);
    let items = argument(arguments, 0).map_or(0, budget::items);
    effort::spend(what, items.saturating_mul(path as u64))?;
    list(what, arguments)
}

fn pairs(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    budget::charge_entries(what, argument(arguments, 0).map_or(0, budget::items))
}

/// What was seen already is remembered, in lower case.
fn distinct(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let Some(value) = argument(arguments, 0) else { return Ok(0) };
    sorted(what, arguments)?;
    budget::charge_items(what, budget::items(value).saturating_mul(4))?;
    budget::charge(what, joined_size(value, 0).saturating_mul(3))
}

/// `slice` and `batch` make room for as many items as they are told, whether there are so many or not.
fn parts(what: &str, arguments: &[Value]) -> Result<u64, Error> {
    let items = argument(arguments, 0).map_or(0, budget::items);
    let count = argument(arguments, 1).and_then(Value::as_usize).unwrap_or(0) as u64;
    budget::charge_items(what, items.saturating_mul(4).saturating_add(count.saturating_mul(4)))
}

/// What `raise_exception` says, as far as one would read.
pub(super) fn message(value: &Value) -> Result<String, Error> {
    let said = python::str_of(value)?;
    Ok(shortened(&said))
}

/// Errors may quote what they fail on, however long that is.
pub(super) fn shortened(message: &str) -> String {
    const MOST: usize = 2_000;
    match message.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}
