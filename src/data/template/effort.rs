//! How much one render may read. Counts bytes and values gone through, and knows nothing of templates.
//!
//! Two limits, for what a limit on instructions leaves open. A list may hold another twice, that one a third twice, and
//! so on: sixty of them take no memory to speak of, and for ever to compare, hash or sort, since that goes through all
//! that a list holds as often as it is held. So [`whole`] bounds how large a value is when nothing in it counts as
//! shared, before the engine goes through it. And each instruction may read a text of a hundred million bytes: what all
//! of them read together is bounded by [`MOST_READ`].
//!
//! The count is the thread's, as that of [`budget`](super::budget) is. What the renders of all rows may take together is
//! [`allowance`](super::allowance)'s.

use std::cell::Cell;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::budget::{ITEM, MOST_BUILT, MOST_NESTED};
use crate::units::Bytes;

/// Bytes that one render may go through, over and over: seconds. Most templates read a conversation some ten times; one
/// that adds a thousand turns to a text of some million bytes, copying it for each, reads a few billion.
const MOST_READ: u64 = 8 << 30;

/// What a byte counts where a text is gone through character by character, each looked up in a table.
pub(super) const CHARACTER: u64 = 8;

/// What a value gone through counts: as much as of text is read in that time.
const VALUE: u64 = 128;

/// What an instruction counts: as much as of text is read in that time.
const INSTRUCTION: u64 = 1 << 10;

thread_local! {
    static READ: Cell<u64> = const { Cell::new(0) };
    /// Instructions of the render, when it was last asked.
    static INSTRUCTIONS: Cell<u64> = const { Cell::new(0) };
}

/// A render begins: nothing is read.
pub(super) fn begin() {
    READ.set(0);
    INSTRUCTIONS.set(0);
}

/// The render has taken so many instructions by now.
pub(super) fn instructions(until_now: u64) {
    INSTRUCTIONS.set(until_now);
}

/// The render may have taken so many more since it was last asked.
pub(super) fn further_instructions(most: u64) {
    INSTRUCTIONS.set(INSTRUCTIONS.get().saturating_add(most));
}

/// What the render on this thread, or the last one, has read and computed.
pub(super) fn taken() -> u64 {
    READ.get().saturating_add(INSTRUCTIONS.get().saturating_mul(INSTRUCTION))
}

/// Takes so many bytes of reading, or refuses them.
///
/// # Errors
/// Not as much is left.
pub(super) fn spend(what: &str, bytes: u64) -> Result<(), Error> {
    let read = READ.get().saturating_add(bytes);
    if read > MOST_READ {
        return Err(invalid(format!(
            "{what} goes on reading; for one conversation a template may read {} in all",
            Bytes(MOST_READ)
        )));
    }
    READ.set(read);
    Ok(())
}

/// Takes what a call reads at least: all of the texts, and each item of the lists.
///
/// # Errors
/// Not as much is left.
pub(super) fn spend_on(what: &str, arguments: &[Value]) -> Result<(), Error> {
    let reads = |value: &Value| match value.as_str() {
        Some(text) => text.len() as u64,
        None if value.as_object().is_some() => value.len().unwrap_or(0) as u64 * ITEM,
        None => 0,
    };
    spend(what, arguments.iter().map(reads).fold(0, u64::saturating_add))
}

/// A walk through all that a value holds, as often as it is held.
struct Walk<'a> {
    what: &'a str,
    values: u64,
    texts: u64,
    /// The objects of the engine that hold what cannot be seen are refused.
    plain: bool,
}

impl Walk<'_> {
    fn size(&self) -> u64 {
        self.values * ITEM + self.texts
    }

    fn through(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.values += 1;
        if let Some(text) = value.as_str() {
            self.texts = self.texts.saturating_add(text.len() as u64);
            return Ok(());
        }
        let Some(object) = value.as_object() else { return Ok(()) };
        if depth > MOST_NESTED {
            return Err(too_deep());
        }
        if self.values * ITEM > MOST_BUILT {
            return Err(self.too_shared());
        }
        if self.plain && (object.type_name().ends_with("::Loop") || object.type_name().ends_with("::Macro")) {
            return Err(invalid(format!("{} cannot keep `loop` or a macro", self.what)));
        }
        if let Some(items) = value.downcast_object_ref::<Vec<Value>>() {
            return items.iter().try_for_each(|item| self.through(item, depth + 1));
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    self.through(&item, depth + 1)?;
                }
            }
            ValueKind::Map => {
                for key in value.try_iter()? {
                    self.through(&value.get_item(&key)?, depth + 1)?;
                    self.through(&key, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn too_shared(&self) -> Error {
        invalid(format!(
            "{} would go through more than {}: its lists or dictionaries hold one another many times over",
            self.what,
            Bytes(MOST_BUILT)
        ))
    }
}

/// Goes through all that a value holds, and takes what that reads. How large the value is, were nothing in it shared.
///
/// # Errors
/// It is larger than a render may build, or nested more deeply than the engine can follow, or too much was read already.
pub(super) fn whole(what: &str, value: &Value) -> Result<u64, Error> {
    walk(what, value, false)
}

/// As [`whole`], for a value that is to be kept: nothing that the engine would have to go through later, be it to drop it,
/// is too much for it.
///
/// # Errors
/// Those of [`whole`]; the value holds a `loop` or a macro, in which others can hide.
pub(super) fn require_plain(what: &str, value: &Value) -> Result<(), Error> {
    walk(what, value, true).map(drop)
}

fn walk(what: &str, value: &Value, plain: bool) -> Result<u64, Error> {
    let mut walk = Walk { what, values: 0, texts: 0, plain };
    let gone_through = walk.through(value, 0);
    spend(what, walk.values * VALUE)?;
    gone_through.map(|()| walk.size())
}

/// How large the values of a conversation are, each counted as often as it is held. Takes nothing.
pub(super) fn size(values: &[Value]) -> u64 {
    let mut walk = Walk { what: "", values: 0, texts: 0, plain: false };
    // What is too large to go through is large enough.
    let _refused = values.iter().try_for_each(|value| walk.through(value, 0));
    walk.size()
}

/// Takes what comparing two values reads: no more than the smaller of them.
///
/// # Errors
/// Those of [`whole`].
pub(super) fn compare(what: &str, left: &Value, right: &Value) -> Result<(), Error> {
    match (left.as_str(), right.as_str()) {
        (Some(left), Some(right)) => spend(what, left.len().min(right.len()) as u64),
        // Values of two kinds differ at sight.
        _ if left.as_object().is_none() || right.as_object().is_none() => Ok(()),
        _ => {
            let smaller = whole(what, left)?.min(whole(what, right)?);
            spend(what, smaller)
        }
    }
}

/// Takes what putting the items of a list in order reads, each compared with a few of the others by what lies behind
/// `path`.
///
/// # Errors
/// Those of [`whole`].
pub(super) fn order(what: &str, list: &Value, path: &str) -> Result<(), Error> {
    // A text has characters for items.
    let items = list.len().unwrap_or(0) as u64;
    let rounds = u64::from(items.max(2).ilog2()) + 1;
    let each = whole(what, list)?.saturating_add(items.saturating_mul(path.len() as u64));
    spend(what, each.saturating_mul(rounds))
}

/// A value that is to be a key, or is looked for among keys. As in Python, no list or dictionary can be one.
///
/// # Errors
/// It is a list or a dictionary.
pub(super) fn require_key(value: &Value) -> Result<(), Error> {
    match value.as_object() {
        Some(_) => Err(invalid(format!("a {} cannot be a key", value.kind()))),
        None => Ok(()),
    }
}

pub(super) fn too_deep() -> Error {
    invalid("a value is nested too deeply".to_owned())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubled(times: usize) -> Value {
        (0..times).fold(Value::from("x"), |value, _| Value::from(vec![value.clone(), value]))
    }

    #[test]
    fn what_is_shared_counts_as_often_as_it_is_held() {
        begin();
        assert_eq!(whole("a test", &doubled(10)).unwrap(), (2_047) * ITEM + 1_024);
        let said = whole("a test", &doubled(60)).unwrap_err().to_string();
        assert!(said.contains("a test would go through more than 128.00 MiB"), "{said}");
        let deep = (0..300).fold(Value::from(1), |value, _| Value::from(vec![value]));
        assert!(whole("a test", &deep).unwrap_err().to_string().contains("nested too deeply"));
    }

    #[test]
    fn comparing_reads_the_smaller_and_what_differs_at_sight_nothing() {
        begin();
        compare("a test", &Value::from("abc"), &Value::from("x".repeat(1 << 20))).unwrap();
        assert_eq!(READ.get(), 3);
        compare("a test", &doubled(60), &Value::from(1)).unwrap();
        assert_eq!(READ.get(), 3);
        assert!(compare("a test", &doubled(60), &doubled(60)).is_err());
    }

    #[test]
    fn reading_ends() {
        begin();
        spend("a test", MOST_READ).unwrap();
        let said = spend("a test", 1).unwrap_err().to_string();
        assert!(said.contains("a template may read 8.00 GiB in all"), "{said}");
        begin();
        spend("a test", 1).unwrap();
    }
}
