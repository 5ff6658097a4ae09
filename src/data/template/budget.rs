//! How much one render may build: texts and lists on the way as well as what is written in the end. Counts bytes, and
//! knows nothing of templates.
//!
//! A template can double a text with each instruction (`{% set x = x ~ x %}`), so a limit on instructions and one on
//! the output bound no memory. Everything in a render that makes a value larger than its parts therefore asks here
//! first. Large texts and lists are watched, and what they took is given back once nothing holds them any more: a
//! template that adds turn after turn to one text builds each of them anew, and keeps one. Small ones are not; their
//! number is bounded with the instructions.
//!
//! The count is the thread's: a render runs on one thread, and some of what it calls gets no handle to hang a count on.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::{Arc, Weak};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::effort::{self, too_deep};
use crate::units::Bytes;

/// Bytes that one render may have built and hold. The longest conversations that are trained on have a few million, and
/// a template builds each turn a few times over. Memory peaks at some three times this: a text that grows is held twice.
pub(super) const MOST_BUILT: u64 = 128 << 20;

/// What an item of a list counts, whatever it is: the value's own size, without what it shares with others.
pub(super) const ITEM: u64 = size_of::<Value>() as u64;

/// What an entry of a dictionary counts: key, value, hash and place.
const ENTRY: u64 = 4 * ITEM;

/// Values nested deeper than this are not gone through: the engine does that by recursion, be it to drop them.
pub(super) const MOST_NESTED: usize = 200;

/// Texts and lists of no fewer bytes are watched.
const WATCHED: u64 = 4 << 10;

/// So much is built between two looks at what is held no more.
const BETWEEN_LOOKS: u64 = 16 << 20;

/// Something built that may have gone since. A text's bytes go with its last watcher only, so looks are taken often.
enum Watched {
    Text(Weak<str>),
    List(Weak<Vec<Value>>),
}

impl Watched {
    fn is_gone(&self) -> bool {
        match self {
            Watched::Text(text) => text.strong_count() == 0,
            Watched::List(list) => list.strong_count() == 0,
        }
    }
}

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(MOST_BUILT) };
    /// With less than this left, a look is due.
    static LOOK_BELOW: Cell<u64> = const { Cell::new(MOST_BUILT - BETWEEN_LOOKS) };
    /// What is watched, and what each took.
    static HELD: RefCell<Vec<(Watched, u64)>> = const { RefCell::new(Vec::new()) };
}

/// A render begins: all is there again, nothing watched, nothing read.
pub(super) fn begin() {
    effort::begin();
    end();
}

/// A render has ended: nothing is watched any more. What it read can still be [asked](effort::taken).
pub(super) fn end() {
    HELD.with_borrow_mut(Vec::clear);
    LEFT.set(MOST_BUILT);
    LOOK_BELOW.set(MOST_BUILT - BETWEEN_LOOKS);
}

/// What may still be built.
pub(super) fn left() -> u64 {
    LEFT.get()
}

/// Gives back what is held no more.
fn look() {
    let mut back = 0;
    HELD.with_borrow_mut(|held| {
        held.retain(|(watched, took)| {
            let gone = watched.is_gone();
            back += if gone { *took } else { 0 };
            !gone
        });
    });
    LEFT.set(LEFT.get() + back);
    LOOK_BELOW.set(LEFT.get().saturating_sub(BETWEEN_LOOKS));
}

fn watch(watched: Watched, took: u64) {
    HELD.with_borrow_mut(|held| held.push((watched, took)));
}

/// A text that took so much, watched if it is large.
pub(super) fn text(text: Value, took: u64) -> Value {
    if took >= WATCHED
        && let Some(shared) = text.to_str()
        && shared.len() as u64 * 8 >= took
    {
        watch(Watched::Text(Arc::downgrade(&shared)), took);
    }
    text
}

/// A list, taken from what is left and watched if it is large.
///
/// # Errors
/// Not as much is left.
pub(super) fn list(what: &str, items: impl Iterator<Item = Value>, length: u64) -> Result<Value, Error> {
    charge_items(what, length)?;
    let list = Value::from(items.collect::<Vec<Value>>());
    let took = length * ITEM;
    if took >= WATCHED
        && let Some(shared) = list.downcast_object::<Vec<Value>>()
    {
        watch(Watched::List(Arc::downgrade(&shared)), took);
    }
    Ok(list)
}

/// Lists that the engine would only make when they are read, made at once: each reading goes through all that it is made
/// of, and a template can make one of another without end. Other values are let be.
///
/// # Errors
/// Not as much is left.
pub(super) fn eager(what: &str, value: Value) -> Result<Value, Error> {
    let is_made = || value.downcast_object_ref::<Vec<Value>>().is_some();
    match value.kind() {
        ValueKind::Iterable => list(what, value.try_iter()?, items(&value)),
        ValueKind::Seq if !is_made() => list(what, value.try_iter()?, items(&value)),
        _ => Ok(value),
    }
}

/// Takes what `what` is about to build, or refuses it. What it took.
///
/// # Errors
/// Not as much is left, or too much was read.
pub(super) fn charge(what: &str, bytes: u64) -> Result<u64, Error> {
    if LEFT.get() < LOOK_BELOW.get().max(bytes) {
        look();
    }
    let left = LEFT.get();
    if bytes > left {
        return Err(too_large(what, &Bytes(bytes).to_string()));
    }
    // What is built is read for it.
    effort::spend(what, bytes)?;
    LEFT.set(left - bytes);
    Ok(bytes)
}

/// Takes what a list of so many items needs.
///
/// # Errors
/// Not as much is left.
pub(super) fn charge_items(what: &str, items: u64) -> Result<u64, Error> {
    charge(what, items.saturating_mul(ITEM))
}

/// Takes what a dictionary of so many entries needs.
///
/// # Errors
/// Not as much is left.
pub(super) fn charge_entries(what: &str, entries: u64) -> Result<u64, Error> {
    charge(what, entries.saturating_mul(ENTRY))
}

fn too_large(what: &str, bytes: &str) -> Error {
    let built = MOST_BUILT - LEFT.get();
    Error::new(
        ErrorKind::InvalidOperation,
        format!(
            "{what} would build {bytes}; for one conversation a template may hold {}, and this one holds {} already",
            Bytes(MOST_BUILT),
            Bytes(built)
        ),
    )
}

/// How many items iterating over a value gives; 0 if one cannot. Counts no further than what is left would hold.
pub(super) fn items(value: &Value) -> u64 {
    if let Some(text) = value.as_str() {
        return text.chars().count() as u64;
    }
    if let Some(length) = value.len() {
        return length as u64;
    }
    let most = left() / ITEM + 1;
    value.try_iter().map_or(0, |items| items.take(most as usize).count() as u64)
}

/// About how many bytes a value takes as text, and no less; for a text that is its length. Counts no further than
/// what is left, and no deeper than [`MOST_NESTED`]: what is deeper counts as too large.
pub(super) fn text_size(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => text.len() as u64,
        None => size_within(value, left(), 0),
    }
}

/// The size of a value inside another: texts in quotes, each byte escaped at worst.
fn size_within(value: &Value, most: u64, depth: usize) -> u64 {
    if let Some(text) = value.as_str() {
        return 2 + 6 * text.len() as u64;
    }
    match value.kind() {
        ValueKind::Number if value.is_integer() => 40,
        // `1e308` is written out.
        ValueKind::Number => 340,
        ValueKind::None | ValueKind::Bool | ValueKind::Undefined => 9,
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            if depth == MOST_NESTED {
                return u64::MAX;
            }
            // Brackets, and a value of its own: many that are empty take time to go through as well.
            let mut size = 2 + 2 * ITEM;
            let Ok(items) = value.try_iter() else { return size };
            for item in items {
                size = size.saturating_add(4).saturating_add(size_within(&item, most, depth + 1));
                if value.kind() == ValueKind::Map
                    && let Ok(held) = value.get_item(&item)
                {
                    size = size.saturating_add(size_within(&held, most.saturating_sub(size), depth + 1));
                }
                if size > most {
                    break;
                }
            }
            size
        }
        _ => 64,
    }
}

/// A text that grows within what is left.
pub(super) struct Text {
    text: String,
    most: u64,
    what: &'static str,
}

impl Text {
    /// An empty text, built by `what`.
    pub(super) fn new(what: &'static str) -> Text {
        Text { text: String::new(), most: left(), what }
    }

    /// An empty text for all of a value. The value is looked through first, so that one that holds itself many times over
    /// is refused before it is written out.
    ///
    /// # Errors
    /// The value is too large, or nested too deeply.
    pub(super) fn of(value: &Value, what: &'static str) -> Result<Text, Error> {
        let text = Text::new(what);
        text.fits(value)?;
        Ok(text)
    }

    fn fits(&self, value: &Value) -> Result<(), Error> {
        match size_within(value, self.most, 0) {
            u64::MAX => Err(too_deep()),
            size if size > self.most => Err(self.too_large()),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// The text grows larger than what is left.
    pub(super) fn push_str(&mut self, more: &str) -> Result<(), Error> {
        if more.len() as u64 > self.most - self.text.len() as u64 {
            look();
            self.most = left();
            if (self.text.len() + more.len()) as u64 > self.most {
                return Err(self.too_large());
            }
        }
        self.text.push_str(more);
        Ok(())
    }

    /// # Errors
    /// The text grows larger than what is left.
    pub(super) fn push(&mut self, character: char) -> Result<(), Error> {
        self.push_str(character.encode_utf8(&mut [0; 4]))
    }

    /// Writes a value as the engine does.
    ///
    /// # Errors
    /// The text grows larger than what is left, or the value is nested too deeply.
    pub(super) fn push_value(&mut self, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => self.push_str(text),
            None => {
                self.fits(value)?;
                fmt::write(self, format_args!("{value}")).map_err(|_| self.too_large())
            }
        }
    }

    /// The text as a value, watched.
    ///
    /// # Errors
    /// None that [`push_str`](Self::push_str) did not give.
    pub(super) fn finish_value(self) -> Result<Value, Error> {
        let finished = self.finish()?;
        let took = finished.len() as u64;
        Ok(text(Value::from(finished), took))
    }

    /// The text, taken from what is left.
    ///
    /// # Errors
    /// None that [`push_str`](Self::push_str) did not give.
    pub(super) fn finish(self) -> Result<String, Error> {
        charge(self.what, self.text.len() as u64)?;
        Ok(self.text)
    }

    fn too_large(&self) -> Error {
        too_large(self.what, &format!("more than {}", Bytes(self.most)))
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        self.push_str(more).map_err(|_| fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_counts_as_its_bytes_and_what_it_holds_as_no_less() {
        for (value, least) in [
            (Value::from("é"), 2),
            (Value::from(vec![Value::from("a\u{1}"), Value::from(1.5)]), r#"["a\u{1}", 1.5]"#.len() as u64),
            (Value::from_serialize(serde_json::json!({"a": [1, 2, 3], "b": null})), 24),
        ] {
            assert!(text_size(&value) >= least, "{value}: {}", text_size(&value));
            assert!(text_size(&value) >= value.to_string().len() as u64, "{value}");
        }
        assert_eq!(text_size(&Value::from("é")), 2);
    }

    #[test]
    fn what_is_doubled_without_end_is_counted_no_further_than_needed() {
        let mut value = Value::from("x");
        for _ in 0..60 {
            value = Value::from(vec![value.clone(), value]);
        }
        begin();
        assert!(text_size(&value) > MOST_BUILT);
        for _ in 0..300 {
            value = Value::from(vec![value]);
        }
        assert_eq!(text_size(&value), u64::MAX);
    }

    #[test]
    fn what_is_held_no_more_is_given_back() {
        begin();
        let mut kept = Value::from("");
        for _ in 0..1000 {
            let mut text = Text::new("a test");
            text.push_str(&"x".repeat(1 << 20)).unwrap();
            kept = text.finish_value().unwrap();
            list("a test", (0..10_000).map(Value::from), 10_000).unwrap();
        }
        assert_eq!(kept.as_str().map(str::len), Some(1 << 20));
        let mut all = Vec::new();
        while left() >= 1 << 20 {
            let mut text = Text::new("a test");
            text.push_str(&"x".repeat(1 << 20)).unwrap();
            all.push(text.finish_value().unwrap());
        }
        assert_eq!(all.len(), 127, "beside the one kept before");
        assert!(Text::new("a test").push_str(&"x".repeat(1 << 20)).is_err());
        begin();
    }

    #[test]
    fn a_text_stops_at_what_is_left() {
        begin();
        charge("a test", MOST_BUILT - 3).unwrap();
        let mut text = Text::new("`x`");
        text.push_str("ab").unwrap();
        let said = text.push_str("cd").unwrap_err().to_string();
        assert!(said.contains("`x` would build more than 3 B"), "{said}");
        text.push('c').unwrap();
        assert_eq!(text.finish().unwrap(), "abc");
        assert_eq!(left(), 0);
        begin();
    }
}
