//! The keys that differ between two recipes, of those that can change the weights.

use std::collections::BTreeMap;
use std::fmt;

/// A key that differs between two recipes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its path, as `--set` takes it (`train.learning_rate`, `dataset.0.path`).
    pub key: String,
    /// The value of the first recipe as TOML; `None` if it has no such key.
    pub was: Option<String>,
    /// The value of the second.
    pub is: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, was, is } = self;
        match (was, is) {
            (Some(was), Some(is)) => write!(formatter, "`{key}` was {was} and is {is}"),
            (Some(was), None) => write!(formatter, "`{key}` was {was} and is left out"),
            (None, is) => {
                write!(formatter, "`{key}` was left out and is {}", is.as_deref().unwrap_or("left out"))
            }
        }
    }
}

/// All keys that differ between two recipes, each given as [`essentials`](super::Recipe::essentials).
pub fn differences(was: &str, is: &str) -> Vec<Difference> {
    let (was, mut is) = (keys(was), keys(is));
    let mut found = Vec::new();
    for (key, was) in was {
        let is = is.remove(&key);
        if is.as_ref() != Some(&was) {
            found.push(Difference { key, was: Some(was), is });
        }
    }
    found.extend(is.into_iter().map(|(key, is)| Difference { key, was: None, is: Some(is) }));
    found
}

/// Paths and values of a canonical text. A header counts as a key, so that an empty table differs from none.
fn keys(text: &str) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    let mut repeated: BTreeMap<&str, usize> = BTreeMap::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix("[[").and_then(|line| line.strip_suffix("]]")) {
            let index = repeated.entry(header).or_default();
            table = format!("{header}.{index}.");
            *index += 1;
        } else if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = format!("{header}.");
            keys.insert(header.to_owned(), "there".to_owned());
        } else if let Some((key, value)) = line.split_once(" = ") {
            keys.insert(format!("{table}{key}"), value.to_owned());
        }
    }
    keys
}
