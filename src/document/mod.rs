//! TOML with the place of every value, keys by their declarations, and problems that point at their places.
//!
//! A file and its command-line overrides become one [`Table`]; rooms read their own part of it through a
//! [`KeyTable`], whose reader checks types and ranges, remembers which keys it has read, and collects every problem in a
//! [`Findings`] instead of stopping at the first. This module knows no key of any recipe and opens no file.

mod describe;
mod key;
mod parse;
mod place;
mod problem;
mod reader;
mod shape;
#[cfg(test)]
mod tests;
mod unknown;
mod value;
mod writer;

pub use describe::{Absence, KeyDescription, KeyKind, TableDescription};
pub use key::{Check, Key, KeyTable, Limits, Parsed, ParsedSlot, Slot, alternatives};
pub use parse::{parse, parse_value};
pub use place::{Place, Source};
pub use problem::{Problem, Problems};
pub use reader::{Findings, TableReader};
pub use shape::{Shaped, ValueError, Word, integer, list, number, one_of, pairs, path, text, truth, word};
pub use unknown::Meaning;
pub use value::{Entry, Kind, Table, Value};
pub use writer::{Writer, Written};
