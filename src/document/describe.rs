//! What the declarations of keys say, without their types: for help, reference, schema and import.

use std::fmt;
use std::ops::Bound;
use std::ops::RangeBounds;

use serde_json::{Value as Json, json};

use super::key::{Field, Limits};

/// A table and its keys.
#[derive(Clone, Debug)]
pub struct TableDescription {
    /// Its path, empty for the top level.
    pub path: &'static str,
    /// Its header as it is written, empty for the top level.
    pub header: String,
    /// What it is for.
    pub meaning: &'static str,
    /// What other tools call it.
    pub also: &'static [&'static str],
    /// Whether there may be several.
    pub repeated: bool,
    /// Its keys, in the order in which they are written.
    pub keys: Vec<KeyDescription>,
}

/// A key.
#[derive(Clone, Debug)]
pub struct KeyDescription {
    /// With its table (`train.learning_rate`).
    pub path: String,
    /// Without it.
    pub name: &'static str,
    /// Its type and range.
    pub kind: KeyKind,
    /// What its absence means.
    pub absence: Absence,
    /// What it does.
    pub meaning: &'static str,
    /// What other tools call it.
    pub also: &'static [&'static str],
    /// Whether it can change the weights that a run produces.
    pub changes_weights: bool,
}

/// What an absent key means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// This value, in TOML.
    Default(String),
    /// What these words say.
    Means(&'static str),
    /// An error; an example of a value, in TOML.
    Required(&'static str),
}

impl fmt::Display for Absence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default(value) => write!(formatter, "default {value}"),
            Self::Means(meaning) => write!(formatter, "default: {meaning}"),
            Self::Required(example) => write!(formatter, "required, for example {example}"),
        }
    }
}

/// Type and range of a key's value.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyKind {
    /// A finite number.
    Number(Limits),
    /// A whole number, from the first to the second.
    Integer(u64, u64),
    /// A power of two, from the first to the second.
    PowerOfTwo(u64, u64),
    /// `true` or `false`.
    Flag,
    /// A text that is not empty.
    Text,
    /// A path.
    Path,
    /// A list of texts.
    List,
    /// A spelling of its own: in words, and as a JSON schema.
    Parsed(String, Json),
}

impl<D> Field<D> {
    pub(super) fn kind(&self, default: &mut D) -> KeyKind {
        match self {
            Self::Number(limits, _) => KeyKind::Number(*limits),
            Self::Integer(range, _) => KeyKind::Integer(*range.start(), *range.end()),
            Self::Count(range, _) => KeyKind::Integer(*range.start() as u64, *range.end() as u64),
            Self::PowerOfTwo(range, _) => KeyKind::PowerOfTwo(*range.start() as u64, *range.end() as u64),
            Self::Flag(_) => KeyKind::Flag,
            Self::Text(_) => KeyKind::Text,
            Self::Path(_) => KeyKind::Path,
            Self::List(..) => KeyKind::List,
            Self::Parsed(field) => {
                let slot = field(default);
                KeyKind::Parsed(slot.expected(), slot.schema())
            }
        }
    }
}

impl KeyKind {
    /// The JSON schema of the values.
    pub fn schema(&self) -> Json {
        match self {
            Self::Number(limits) => {
                let mut schema = json!({"type": "number"});
                match limits.start_bound() {
                    Bound::Included(from) => schema["minimum"] = json!(from),
                    Bound::Excluded(from) => schema["exclusiveMinimum"] = json!(from),
                    Bound::Unbounded => {}
                }
                match limits.end_bound() {
                    Bound::Included(to) => schema["maximum"] = json!(to),
                    Bound::Excluded(to) => schema["exclusiveMaximum"] = json!(to),
                    Bound::Unbounded => {}
                }
                schema
            }
            Self::Integer(from, to) => json!({"type": "integer", "minimum": from, "maximum": to}),
            Self::PowerOfTwo(from, to) => {
                let powers = (0..64).map(|power| 1_u64 << power).filter(|power| (from..=to).contains(&power));
                json!({"enum": powers.collect::<Vec<_>>()})
            }
            Self::Flag => json!({"type": "boolean"}),
            Self::Text | Self::Path => json!({"type": "string", "minLength": 1}),
            Self::List => json!({"type": "array", "items": {"type": "string", "minLength": 1}}),
            Self::Parsed(_, schema) => schema.clone(),
        }
    }
}

/// Type and range, in words.
impl fmt::Display for KeyKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(limits) => {
                let from = match limits.start_bound() {
                    Bound::Included(from) => format!("at least {from}"),
                    Bound::Excluded(from) => format!("above {from}"),
                    Bound::Unbounded => String::new(),
                };
                match limits.end_bound() {
                    Bound::Included(to) => write!(formatter, "number {from}, at most {to}"),
                    Bound::Excluded(to) => write!(formatter, "number {from}, below {to}"),
                    Bound::Unbounded => write!(formatter, "number {from}"),
                }
            }
            Self::Integer(from, to) => write!(formatter, "integer from {from} to {}", Large(*to)),
            Self::PowerOfTwo(from, to) => write!(formatter, "power of two from {from} to {to}"),
            Self::Flag => formatter.write_str("true or false"),
            Self::Text => formatter.write_str("string"),
            Self::Path => formatter.write_str("path"),
            Self::List => formatter.write_str("list of strings"),
            Self::Parsed(expected, _) => formatter.write_str(expected),
        }
    }
}

/// A bound, short where it is a large power.
struct Large(u64);

impl fmt::Display for Large {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zeros = self.0.checked_ilog10().unwrap_or(0);
        match self.0 {
            number if number == i64::MAX as u64 => formatter.write_str("2^63 - 1"),
            number if zeros >= 9 && number == 10_u64.pow(zeros) => write!(formatter, "1e{zeros}"),
            number => write!(formatter, "{number}"),
        }
    }
}
