//! Functions from a [`Value`] to a Rust type, composed from small ones.
//!
//! Each reports everything that is wrong with a value; the reader adds the key that the value belongs to.

use std::fmt::Display;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::path::PathBuf;

use super::Place;
use super::unknown::closest;
use super::value::{Kind, Value};

/// Why a value does not fit its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueError {
    pub(super) place: Place,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) label: String,
    pub(super) help: Option<String>,
}

impl ValueError {
    /// An error at `value`. `message` continues the sentence that the reader begins with the key (`train.epochs`: …).
    pub fn new(value: &Value, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self {
            place: value.place.clone(),
            code: "recipe::invalid_value",
            message: message.into(),
            label: label.into(),
            help: None,
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

/// The value, or everything that is wrong with it; the list is empty where a syntax error was reported already.
pub type Shaped<T> = Result<T, Vec<ValueError>>;

/// The error of a value of another type.
fn wrong_type<T>(value: &Value, expected: &str) -> Shaped<T> {
    match value.kind {
        Kind::Broken => Err(Vec::new()),
        _ => Err(vec![type_error(value, expected)]),
    }
}

fn type_error(value: &Value, expected: &str) -> ValueError {
    let found = value.kind.noun();
    ValueError::new(value, format!("expected {expected}, found {found}"), found).coded("recipe::wrong_type")
}

/// The error of a value that is a text, and would fit without its quotes if `unquoted`.
fn needless_quotes<T>(value: &Value, expected: &str, unquoted: bool) -> Shaped<T> {
    match &value.kind {
        Kind::String(text) if unquoted => {
            Err(vec![type_error(value, expected).help(format!("remove the quotes: {text}"))])
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
            Err(vec![ValueError::new(value, "must not be empty", "empty")])
        }
        Kind::String(text) => Ok(text.clone()),
        Kind::Integer(_) | Kind::Float(_) | Kind::Boolean(_) | Kind::Date => {
            let quoted = format!("put it in quotes: \"{}\"", value.place.text());
            Err(vec![type_error(value, "a string").help(quoted)])
        }
        _ => wrong_type(value, "a string"),
    }
}

/// A path: a string that is not empty and has no NUL.
pub fn path(value: &Value) -> Shaped<PathBuf> {
    let text = text(value)?;
    if text.contains('\0') {
        return Err(vec![ValueError::new(value, "a path holds no NUL character", "not a path")]);
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
            Err(vec![type_error(value, "an integer").help(format!("write it as one: {float:.0}"))])
        }
        Kind::String(text) => needless_quotes(value, "an integer", text.trim().parse::<i128>().is_ok()),
        _ => wrong_type(value, "an integer"),
    }
}

/// A power of two in `range`.
pub(super) fn power_of_two(range: RangeInclusive<usize>) -> impl Fn(&Value) -> Shaped<usize> {
    move |value| {
        let number = integer(range.clone())(value)?;
        if number.is_power_of_two() {
            return Ok(number);
        }
        let powers = std::iter::successors(Some(1_usize), |power| power.checked_mul(2));
        let choices: Vec<_> =
            powers.filter(|power| range.contains(power)).map(|power| power.to_string()).collect();
        Err(vec![
            ValueError::new(value, format!("{number} is not a power of two"), "not a power of two")
                .help(format!("one of {}", choices.join(", "))),
        ])
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

fn out_of_range<T: Display>(value: &Value, found: &impl Display, range: &impl RangeBounds<T>) -> ValueError {
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
    ValueError::new(value, format!("{found} is out of range"), "out of range")
        .coded("recipe::out_of_range")
        .help(format!("allowed: {allowed}"))
}

/// A closed choice, written as one of a few words.
pub trait Word: Copy + PartialEq + 'static {
    /// Each word and what it means.
    const WORDS: &'static [(&'static str, Self)];

    /// Words of other tools, each with ours for the same choice.
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
            _ => Err(vec![type_error(value, "a word").help(format!("one of {expected}"))]),
        };
    };
    if let Some((_, choice)) = T::WORDS.iter().find(|(word, _)| word == found) {
        return Ok(*choice);
    }
    let lower = found.to_lowercase().replace('_', "-");
    let known = words.clone().find(|word| *word == lower);
    let alias = T::ALIASES.iter().find(|(alias, _)| alias.replace('_', "-") == lower).map(|(_, ours)| *ours);
    let help = match (known.or(alias), closest(found, words)) {
        (Some(ours), _) => format!("tune calls it \"{ours}\"; the choices are {expected}"),
        (None, Some(close)) => format!("did you mean \"{close}\"? The choices are {expected}"),
        (None, None) => format!("the choices are {expected}"),
    };
    let error = ValueError::new(value, format!("unknown value \"{found}\""), "unknown value");
    Err(vec![error.coded("recipe::unknown_word").help(help)])
}

/// A list of one shape; every element that does not fit is reported.
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
                Err(errors) => Err(errors
                    .into_iter()
                    .map(|error| ValueError {
                        message: format!("`{}`: {}", entry.key, error.message),
                        ..error
                    })
                    .collect()),
            }
        }))
    }
}

/// One of several shapes, chosen by the kind of the value; `expected` names all of them.
pub fn one_of<T>(
    expected: &'static str,
    choose: impl Fn(&Value) -> Option<Shaped<T>>,
) -> impl Fn(&Value) -> Shaped<T> {
    move |value| choose(value).unwrap_or_else(|| wrong_type(value, expected))
}

/// All values, or all errors.
fn collect<T>(shaped: impl Iterator<Item = Shaped<T>>) -> Shaped<Vec<T>> {
    let (mut fitting, mut errors, mut failed) = (Vec::new(), Vec::new(), false);
    for item in shaped {
        match item {
            Ok(item) => fitting.push(item),
            Err(more) => {
                failed = true;
                errors.extend(more);
            }
        }
    }
    if failed { Err(errors) } else { Ok(fitting) }
}
