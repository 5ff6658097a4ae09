//! What a value may be: functions from a [`Value`] to a Rust type, put together from small ones.
//!
//! A shape says everything that is wrong with a value, and nothing about where in the recipe it stands.

use std::fmt::Display;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::path::PathBuf;

use super::Place;
use super::unknown::closest;
use super::value::{Kind, Value};

/// Why a value does not fit; the key it belongs to is added by the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    pub(super) place: Place,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) label: String,
    pub(super) help: Option<String>,
    /// The key inside the value that it is about (`.text`), empty for the value itself.
    pub(super) inside: String,
}

impl Misfit {
    /// A value that does not fit. `message` reads on after the key's name (`train.epochs`: …).
    pub fn new(value: &Value, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self {
            place: value.place.clone(),
            code: "recipe::invalid_value",
            message: message.into(),
            label: label.into(),
            help: None,
            inside: String::new(),
        }
    }

    /// The way out.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    fn coded(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }
}

/// The value, or everything wrong with it; nothing, when that has been told already.
type Shaped<T> = Result<T, Vec<Misfit>>;

/// The wrong type altogether.
fn wrong_type<T>(value: &Value, expected: &str) -> Shaped<T> {
    match value.kind {
        Kind::Broken => Err(Vec::new()),
        _ => Err(vec![type_misfit(value, expected)]),
    }
}

fn type_misfit(value: &Value, expected: &str) -> Misfit {
    let found = value.kind.noun();
    Misfit::new(value, format!("expected {expected}, found {found}"), found).coded("recipe::wrong_type")
}

/// `"…"` around what would have fitted without.
fn needless_quotes<T>(value: &Value, expected: &str, unquoted: bool) -> Shaped<T> {
    match &value.kind {
        Kind::String(text) if unquoted => {
            Err(vec![type_misfit(value, expected).help(format!("remove the quotes: {text}"))])
        }
        _ => wrong_type(value, expected),
    }
}

/// `true` or `false`.
pub fn truth(value: &Value) -> Shaped<bool> {
    match &value.kind {
        Kind::Boolean(boolean) => Ok(*boolean),
        Kind::String(text) => {
            needless_quotes(value, "`true` or `false`", matches!(text.as_str(), "true" | "false"))
        }
        _ => wrong_type(value, "`true` or `false`"),
    }
}

/// A string that is not empty.
pub fn text(value: &Value) -> Shaped<String> {
    match &value.kind {
        Kind::String(text) if text.trim().is_empty() => {
            Err(vec![Misfit::new(value, "must not be empty", "empty")])
        }
        Kind::String(text) => Ok(text.clone()),
        Kind::Integer(_) | Kind::Float(_) | Kind::Boolean(_) | Kind::Date => {
            let quoted = format!("put it in quotes: \"{}\"", value.place.text());
            Err(vec![type_misfit(value, "a string").help(quoted)])
        }
        _ => wrong_type(value, "a string"),
    }
}

/// A path: a string that is not empty and has no NUL.
pub fn path(value: &Value) -> Shaped<PathBuf> {
    let text = text(value)?;
    if text.contains('\0') {
        return Err(vec![Misfit::new(value, "a path holds no NUL character", "not a path")]);
    }
    Ok(PathBuf::from(text))
}

/// A whole number in `range`.
pub fn integer<T>(range: RangeInclusive<T>) -> impl Fn(&Value) -> Shaped<T>
where
    T: TryFrom<i128> + PartialOrd + Display,
{
    move |value| match &value.kind {
        Kind::Integer(number) => match T::try_from(*number) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(vec![out_of_range(value, number, &range)]),
        },
        Kind::Float(float) if float.fract() == 0.0 && float.abs() < 1e15 => {
            Err(vec![type_misfit(value, "an integer").help(format!("write it as one: {float:.0}"))])
        }
        Kind::String(text) => needless_quotes(value, "an integer", text.trim().parse::<i128>().is_ok()),
        _ => wrong_type(value, "an integer"),
    }
}

/// A finite number in `range`, written as an integer or a float.
pub fn number(range: impl RangeBounds<f64>) -> impl Fn(&Value) -> Shaped<f64> {
    move |value| {
        let number = match &value.kind {
            Kind::Integer(integer) => *integer as f64,
            Kind::Float(float) => *float,
            Kind::String(text) => {
                return needless_quotes(value, "a number", text.trim().parse::<f64>().is_ok());
            }
            _ => return wrong_type(value, "a number"),
        };
        if number.is_finite() && range.contains(&number) {
            return Ok(number);
        }
        Err(vec![out_of_range(value, &number, &range)])
    }
}

fn out_of_range<T: Display>(value: &Value, found: &impl Display, range: &impl RangeBounds<T>) -> Misfit {
    let from = match range.start_bound() {
        Bound::Included(bound) => Some(format!("at least {bound}")),
        Bound::Excluded(bound) => Some(format!("above {bound}")),
        Bound::Unbounded => None,
    };
    let to = match range.end_bound() {
        Bound::Included(bound) => Some(format!("at most {bound}")),
        Bound::Excluded(bound) => Some(format!("below {bound}")),
        Bound::Unbounded => None,
    };
    let allowed = match (from, to) {
        (Some(from), Some(to)) => format!("{from} and {to}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "finite".into(),
    };
    Misfit::new(value, format!("{found} is out of range"), "out of range")
        .coded("recipe::out_of_range")
        .help(format!("allowed: {allowed}"))
}

/// A closed choice, written as one of a few words.
pub trait Word: Copy + PartialEq + 'static {
    /// Each word and what it means.
    const WORDS: &'static [(&'static str, Self)];

    /// Words of other tools, and ours for the same.
    const ALIASES: &'static [(&'static str, &'static str)] = &[];

    /// The word for a choice.
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, choice)| *choice == self).map_or("", |(word, _)| word)
    }
}

/// One of the words of `T`.
pub fn word<T: Word>(value: &Value) -> Shaped<T> {
    let words = T::WORDS.iter().map(|(word, _)| *word);
    let expected = words.clone().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    let Kind::String(found) = &value.kind else {
        return match value.kind {
            Kind::Broken => Err(Vec::new()),
            _ => Err(vec![type_misfit(value, "a word").help(format!("one of {expected}"))]),
        };
    };
    if let Some((_, choice)) = T::WORDS.iter().find(|(word, _)| word == found) {
        return Ok(*choice);
    }
    let lower = found.to_lowercase().replace('_', "-");
    let known = words.clone().find(|word| *word == lower);
    let alias = T::ALIASES.iter().find(|(alias, _)| alias.replace('_', "-") == lower).map(|(_, ours)| *ours);
    let help = match (known.or(alias), closest(found, words)) {
        (Some(ours), _) => format!("here it is \"{ours}\"; the choices are {expected}"),
        (None, Some(close)) => format!("did you mean \"{close}\"? The choices are {expected}"),
        (None, None) => format!("the choices are {expected}"),
    };
    let misfit = Misfit::new(value, format!("\"{found}\" is not one of its words"), "unknown word");
    Err(vec![misfit.coded("recipe::unknown_word").help(help)])
}

/// A list of one shape; every element that does not fit is told.
pub fn list<T>(element: impl Fn(&Value) -> Shaped<T>) -> impl Fn(&Value) -> Shaped<Vec<T>> {
    move |value| {
        let Kind::Array(items) = &value.kind else { return wrong_type(value, "a list") };
        collect(items.iter().map(&element))
    }
}

/// A table of free keys and values of one shape, in the order written.
pub fn pairs<T>(element: impl Fn(&Value) -> Shaped<T>) -> impl Fn(&Value) -> Shaped<Vec<(String, T)>> {
    move |value| {
        let Kind::Table(table) = &value.kind else {
            return wrong_type(value, "a table of `name = value`");
        };
        collect(table.entries().iter().map(|entry| {
            match element(&entry.value) {
                Ok(shaped) => Ok((entry.key.clone(), shaped)),
                Err(misfits) => Err(misfits
                    .into_iter()
                    .map(|misfit| Misfit {
                        message: format!("`{}`: {}", entry.key, misfit.message),
                        ..misfit
                    })
                    .collect()),
            }
        }))
    }
}

/// One of several shapes, told apart by the kind of value; `expected` names them all.
pub fn one_of<T>(
    expected: &'static str,
    choose: impl Fn(&Value) -> Option<Shaped<T>>,
) -> impl Fn(&Value) -> Shaped<T> {
    move |value| choose(value).unwrap_or_else(|| wrong_type(value, expected))
}

/// All that fit, or all that do not.
fn collect<T>(shaped: impl Iterator<Item = Shaped<T>>) -> Shaped<Vec<T>> {
    let (mut fitting, mut misfits, mut failed) = (Vec::new(), Vec::new(), false);
    for item in shaped {
        match item {
            Ok(item) => fitting.push(item),
            Err(more) => {
                failed = true;
                misfits.extend(more);
            }
        }
    }
    if failed { Err(misfits) } else { Ok(fitting) }
}
