//! One declaration per key: its name, type, range, default and meaning, whether it can change the weights, and what
//! other tools call it.
//!
//! A room declares the keys of its table as a constant [`KeyTable`]. From it the table is read, written back, hashed
//! and explained; nothing else names a key. `D` is the value that the table is read into, and holds the defaults: a
//! key reaches its field through a function from `&mut D`.

use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::path::PathBuf;

use super::describe::{Absence, KeyDescription, TableDescription};
use super::reader::TableReader;
use super::shape::{self, Shaped, Word};
use super::unknown::join;
use super::value::Value;
use super::writer::{Writer, Written};

/// A place that takes the value of a key: a field with a default, or an optional one.
pub trait Slot<T> {
    /// Sets the value.
    fn put(&mut self, value: T);
    /// The value, if there is one.
    fn get(&self) -> Option<&T>;
}

impl<T> Slot<T> for T {
    fn put(&mut self, value: T) {
        *self = value;
    }

    fn get(&self) -> Option<&T> {
        Some(self)
    }
}

impl<T> Slot<T> for Option<T> {
    fn put(&mut self, value: T) {
        *self = Some(value);
    }

    fn get(&self) -> Option<&T> {
        self.as_ref()
    }
}

/// A type whose values have a spelling of their own in a recipe.
pub trait Parsed: Sized {
    /// What values look like, in words.
    fn expected() -> String;
    /// What values look like, as a JSON schema.
    fn schema() -> serde_json::Value;
    /// Reads a value.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    fn read(value: &Value) -> Shaped<Self>;
    /// Its TOML.
    fn written(&self) -> String;
}

impl<T: Word> Parsed for T {
    fn expected() -> String {
        alternatives(T::WORDS.iter().map(|(word, _)| format!("\"{word}\"")))
    }

    fn schema() -> serde_json::Value {
        serde_json::json!({ "enum": T::WORDS.iter().map(|(word, _)| *word).collect::<Vec<_>>() })
    }

    fn read(value: &Value) -> Shaped<Self> {
        shape::word(value)
    }

    fn written(&self) -> String {
        self.word().written()
    }
}

/// The choices between values, in words: `a, b or c`.
pub fn alternatives(choices: impl Iterator<Item = String>) -> String {
    let mut choices: Vec<String> = choices.collect();
    let last = choices.pop().unwrap_or_default();
    if choices.is_empty() { last } else { format!("{} or {last}", choices.join(", ")) }
}

/// A [`Slot`] of a [`Parsed`] type, whichever type it is.
pub trait ParsedSlot {
    /// [`Parsed::expected`].
    fn expected(&self) -> String;
    /// [`Parsed::schema`].
    fn schema(&self) -> serde_json::Value;
    /// [`Parsed::read`], into the slot.
    ///
    /// # Errors
    /// Everything that is wrong with the value.
    fn read(&mut self, value: &Value) -> Shaped<()>;
    /// [`Parsed::written`], if there is a value.
    fn written(&self) -> Option<String>;
}

impl<T: Parsed> ParsedSlot for T {
    fn expected(&self) -> String {
        T::expected()
    }

    fn schema(&self) -> serde_json::Value {
        T::schema()
    }

    fn read(&mut self, value: &Value) -> Shaped<()> {
        T::read(value).map(|value| *self = value)
    }

    fn written(&self) -> Option<String> {
        Some(Parsed::written(self))
    }
}

impl<T: Parsed> ParsedSlot for Option<T> {
    fn expected(&self) -> String {
        T::expected()
    }

    fn schema(&self) -> serde_json::Value {
        T::schema()
    }

    fn read(&mut self, value: &Value) -> Shaped<()> {
        T::read(value).map(|value| *self = Some(value))
    }

    fn written(&self) -> Option<String> {
        self.as_ref().map(Parsed::written)
    }
}

/// The numbers that a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    from: Bound<f64>,
    to: Bound<f64>,
}

impl Limits {
    /// Above `from`.
    pub const fn above(from: f64) -> Self {
        Self { from: Bound::Excluded(from), to: Bound::Unbounded }
    }

    /// `from` and above.
    pub const fn from(from: f64) -> Self {
        Self { from: Bound::Included(from), to: Bound::Unbounded }
    }

    /// At most `to`.
    #[must_use]
    pub const fn to(mut self, to: f64) -> Self {
        self.to = Bound::Included(to);
        self
    }

    /// Below `to`.
    #[must_use]
    pub const fn below(mut self, to: f64) -> Self {
        self.to = Bound::Excluded(to);
        self
    }
}

impl RangeBounds<f64> for Limits {
    fn start_bound(&self) -> Bound<&f64> {
        self.from.as_ref()
    }

    fn end_bound(&self) -> Bound<&f64> {
        self.to.as_ref()
    }
}

/// From a draft to the field of a key.
type Lens<D, T> = fn(&mut D) -> &mut dyn Slot<T>;

/// The type of a key's value, its range, and its field.
pub(super) enum Field<D> {
    Number(Limits, Lens<D, f64>),
    Integer(RangeInclusive<u64>, Lens<D, u64>),
    Count(RangeInclusive<usize>, Lens<D, usize>),
    PowerOfTwo(RangeInclusive<usize>, Lens<D, usize>),
    Flag(Lens<D, bool>),
    Text(Lens<D, String>),
    Path(Lens<D, PathBuf>),
    /// Texts, each of which the function reads.
    List(fn(&Value) -> Shaped<String>, Lens<D, Vec<String>>),
    Parsed(fn(&mut D) -> &mut dyn ParsedSlot),
}

/// Whether a key can change the weights that a run produces, and so belongs to the recipe's hash.
pub(super) enum Effect<D> {
    Always,
    Never,
    When(fn(&D) -> bool),
}

/// What an absent key means, where the draft's own default does not say it.
#[derive(Clone, Copy)]
pub(super) enum Absent {
    Default,
    Means(&'static str),
    /// An error; an example of a value.
    Required(&'static str),
}

/// The declaration of one key.
pub struct Key<D: 'static> {
    pub(super) name: &'static str,
    pub(super) field: Field<D>,
    pub(super) absent: Absent,
    pub(super) meaning: &'static str,
    pub(super) also: &'static [&'static str],
    pub(super) effect: Effect<D>,
    pub(super) added: bool,
}

impl<D> Key<D> {
    const fn new(name: &'static str, field: Field<D>) -> Self {
        let (absent, effect) = (Absent::Default, Effect::Always);
        Self { name, field, absent, meaning: "", also: &[], effect, added: false }
    }

    /// A finite number.
    pub const fn number(name: &'static str, limits: Limits, field: Lens<D, f64>) -> Self {
        Self::new(name, Field::Number(limits, field))
    }

    /// A whole number.
    pub const fn integer(name: &'static str, range: RangeInclusive<u64>, field: Lens<D, u64>) -> Self {
        Self::new(name, Field::Integer(range, field))
    }

    /// A whole number of things in memory.
    pub const fn count(name: &'static str, range: RangeInclusive<usize>, field: Lens<D, usize>) -> Self {
        Self::new(name, Field::Count(range, field))
    }

    /// A power of two.
    pub const fn power_of_two(
        name: &'static str,
        range: RangeInclusive<usize>,
        field: Lens<D, usize>,
    ) -> Self {
        Self::new(name, Field::PowerOfTwo(range, field))
    }

    /// `true` or `false`.
    pub const fn flag(name: &'static str, field: Lens<D, bool>) -> Self {
        Self::new(name, Field::Flag(field))
    }

    /// A text that is not empty.
    pub const fn text(name: &'static str, field: Lens<D, String>) -> Self {
        Self::new(name, Field::Text(field))
    }

    /// A path.
    pub const fn path(name: &'static str, field: Lens<D, PathBuf>) -> Self {
        Self::new(name, Field::Path(field))
    }

    /// A list of texts, each read by `element`.
    pub const fn list(
        name: &'static str,
        element: fn(&Value) -> Shaped<String>,
        field: Lens<D, Vec<String>>,
    ) -> Self {
        Self::new(name, Field::List(element, field))
    }

    /// A value with a spelling of its own, [`Word`]s among them.
    pub const fn parsed(name: &'static str, field: fn(&mut D) -> &mut dyn ParsedSlot) -> Self {
        Self::new(name, Field::Parsed(field))
    }

    /// What the key does, in one short sentence.
    #[must_use]
    pub const fn means(mut self, meaning: &'static str) -> Self {
        self.meaning = meaning;
        self
    }

    /// What other tools call it, in lower case with underscores.
    #[must_use]
    pub const fn also(mut self, names: &'static [&'static str]) -> Self {
        self.also = names;
        self
    }

    /// The key may be absent and has no default; `meaning` says what its absence does.
    #[must_use]
    pub const fn optional(mut self, meaning: &'static str) -> Self {
        self.absent = Absent::Means(meaning);
        self
    }

    /// The key must be there; `example` is a value in TOML.
    #[must_use]
    pub const fn required(mut self, example: &'static str) -> Self {
        self.absent = Absent::Required(example);
        self
    }

    /// The key never changes the weights.
    #[must_use]
    pub const fn bookkeeping(mut self) -> Self {
        self.effect = Effect::Never;
        self
    }

    /// The key changes the weights only where `condition` holds.
    #[must_use]
    pub const fn bookkeeping_unless(mut self, condition: fn(&D) -> bool) -> Self {
        self.effect = Effect::When(condition);
        self
    }

    /// The key came after the first release: the canonical text has it only where it differs from its default, so that
    /// the hashes of older recipes stay as they are.
    #[must_use]
    pub const fn added(mut self) -> Self {
        self.added = true;
        self
    }

    fn read(&self, reader: &mut TableReader<'_, '_>, draft: &mut D) {
        fn put<T>(slot: &mut dyn Slot<T>, value: Option<T>) {
            if let Some(value) = value {
                slot.put(value);
            }
        }
        let name = self.name;
        match &self.field {
            Field::Number(limits, field) => put(field(draft), reader.key(name, shape::number(*limits))),
            Field::Integer(range, field) => {
                put(field(draft), reader.key(name, shape::integer(range.clone())))
            }
            Field::Count(range, field) => put(field(draft), reader.key(name, shape::integer(range.clone()))),
            Field::PowerOfTwo(range, field) => {
                put(field(draft), reader.key(name, shape::power_of_two(range.clone())));
            }
            Field::Flag(field) => put(field(draft), reader.key(name, shape::truth)),
            Field::Text(field) => put(field(draft), reader.key(name, shape::text)),
            Field::Path(field) => put(field(draft), reader.key(name, shape::path)),
            Field::List(element, field) => put(field(draft), reader.key(name, shape::list(element))),
            Field::Parsed(field) => {
                let _read_into_the_slot = reader.key(name, |value| field(draft).read(value));
            }
        }
        if let Absent::Required(example) = self.absent {
            reader.require(name, example);
        }
    }

    /// Its value in `draft` as TOML, if it has one.
    pub(super) fn written(&self, draft: &mut D) -> Option<String> {
        fn write<T: Written>(slot: &mut dyn Slot<T>) -> Option<String> {
            <dyn Slot<T> as Slot<T>>::get(slot).map(Written::written)
        }
        match &self.field {
            Field::Number(_, field) => write(field(draft)),
            Field::Integer(_, field) => write(field(draft)),
            Field::Count(_, field) | Field::PowerOfTwo(_, field) => write(field(draft)),
            Field::Flag(field) => write(field(draft)),
            Field::Text(field) => write(field(draft)),
            Field::Path(field) => write(field(draft)),
            Field::List(_, field) => write(field(draft)),
            Field::Parsed(field) => field(draft).written(),
        }
    }
}

/// A check of what several keys of a table say together.
pub type Check<D> = fn(&mut TableReader<'_, '_>, &D);

/// The declaration of one table and its keys, in the order in which they are written.
pub struct KeyTable<D: 'static> {
    /// Its path, empty for the top level.
    pub path: &'static str,
    /// What the table is for, in one short sentence.
    pub meaning: &'static str,
    /// What other tools call it.
    pub also: &'static [&'static str],
    /// Its keys. The order is part of every recipe's hash: new keys stand where they read best, and are `added`.
    pub keys: &'static [Key<D>],
    /// What must hold between its keys.
    pub checks: &'static [Check<D>],
    /// Written `[[path]]`, any number of times.
    pub repeated: bool,
    /// The table came after the first release: so did all its keys, and the canonical text has its header only above
    /// one of them.
    pub added: bool,
}

impl<D: Default> KeyTable<D> {
    /// A table without a key, to fill in.
    pub const NEW: Self =
        Self { path: "", meaning: "", also: &[], keys: &[], checks: &[], repeated: false, added: false };

    /// Reads the table. A key that is absent or does not fit keeps its default.
    pub fn read(&self, reader: &mut TableReader<'_, '_>) -> D {
        let mut draft = D::default();
        for key in self.keys {
            key.read(reader, &mut draft);
        }
        for check in self.checks {
            check(reader, &draft);
        }
        draft
    }

    /// Writes the table: every key with a value, or for the canonical text those that can change the weights.
    pub fn write(&self, draft: &mut D, writer: &mut Writer) {
        let mut default = D::default();
        let canonical = writer.is_canonical();
        let mut lines = String::new();
        for key in self.keys {
            let counts = match key.effect {
                Effect::Always => true,
                Effect::Never => false,
                Effect::When(condition) => condition(draft),
            };
            let Some(value) = key.written(draft).filter(|_| counts || !canonical) else { continue };
            let is_default = (key.added || self.added) && key.written(&mut default).as_ref() == Some(&value);
            if !(canonical && is_default) {
                lines += &format!("{} = {value}\n", key.name);
            }
        }
        let counts = !self.added && !self.keys.iter().all(|key| matches!(key.effect, Effect::Never));
        if !lines.is_empty() || counts || !canonical {
            writer.table(&self.header(), &lines);
        }
    }

    /// The table's header, empty for the top level.
    fn header(&self) -> String {
        match (self.path, self.repeated) {
            ("", _) => String::new(),
            (path, true) => format!("[[{path}]]"),
            (path, false) => format!("[{path}]"),
        }
    }

    /// Everything that the declarations say, for help, reference and schema.
    pub fn describe(&self) -> TableDescription {
        let mut default = D::default();
        let keys = self.keys.iter().map(|key| key.describe(self.path, &mut default)).collect();
        let Self { path, meaning, also, repeated, .. } = *self;
        TableDescription { path, header: self.header(), meaning, also, repeated, keys }
    }
}

impl<D> Key<D> {
    fn describe(&self, table: &'static str, default: &mut D) -> KeyDescription {
        let absence = match (self.absent, self.written(default)) {
            (Absent::Required(example), _) => Absence::Required(example),
            (Absent::Means(meaning), _) => Absence::Means(meaning),
            (Absent::Default, Some(default)) => Absence::Default(default),
            (Absent::Default, None) => Absence::Means(""),
        };
        KeyDescription {
            path: join(table, self.name),
            name: self.name,
            kind: self.field.kind(default),
            absence,
            meaning: self.meaning,
            also: self.also,
            changes_weights: !matches!(self.effect, Effect::Never),
        }
    }
}
