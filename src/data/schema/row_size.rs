//! What one row takes in memory as an example. A file may say a long text once and mean it a thousand times in one row: each
//! time it becomes a text of its own. Counted before it is made.

use serde_json::{Map, Value as Json};

use super::super::source::value::Value;
use super::RowFault;
use crate::units::Bytes;

/// Bytes of a value beside its text, about; and those of a member's name beside it, or of a message.
const VALUE: u64 = 80;

/// What a row takes so far, and what it may take.
pub(super) struct RowSize {
    taken: u64,
    most: u64,
}

impl RowSize {
    pub(super) fn new(most: u64) -> RowSize {
        RowSize { taken: 0, most }
    }

    /// Counts bytes, before memory is taken for them.
    pub(super) fn add(&mut self, bytes: u64, field: &str) -> Result<(), RowFault> {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken <= self.most {
            return Ok(());
        }
        let problem = format!(
            "the row takes more than {} in memory, the most that its file accounts for: values that stand in the file once \
             are in the row over and over; leave it out, or make it shorter",
            Bytes(self.most)
        );
        Err(RowFault { field: field.to_owned(), problem })
    }

    /// Counts values that take little beside themselves, before they are made.
    pub(super) fn values(&mut self, count: usize, field: &str) -> Result<(), RowFault> {
        self.add(VALUE.saturating_mul(count as u64), field)
    }

    /// A text of the row.
    pub(super) fn text(&mut self, text: &str, field: &str) -> Result<String, RowFault> {
        self.add(text.len() as u64, field)?;
        Ok(text.to_owned())
    }

    /// A value as JSON, itself counted by the caller; object members that are null are left out.
    fn json(&mut self, value: Value<'_>, field: &str) -> Result<Json, RowFault> {
        Ok(match value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(value),
            Value::Integer(value) => i64::try_from(value)
                .map(Json::from)
                .or_else(|_| u64::try_from(value).map(Json::from))
                .unwrap_or(Json::Null),
            Value::Float(value) => Json::from(value),
            Value::Text(text) => Json::String(self.text(text, field)?),
            Value::List(list) => {
                self.values(list.len(), field)?;
                // Not collected: a list that grows takes twice its length.
                let mut made = Vec::with_capacity(list.len());
                for value in list.iter() {
                    made.push(self.json(value, field)?);
                }
                Json::Array(made)
            }
            Value::Object(object) => Json::Object(self.members(object.entries(), field)?),
            Value::Other(kind) => Json::String(format!("<{kind}>")),
        })
    }

    /// Members of an object as JSON; those that are null are left out.
    pub(super) fn members<'a>(
        &mut self,
        members: impl Iterator<Item = (&'a str, Value<'a>)>,
        field: &str,
    ) -> Result<Map<String, Json>, RowFault> {
        let mut made = Map::new();
        for (name, value) in members.filter(|(_, value)| !value.is_null()) {
            self.values(2, field)?;
            made.insert(self.text(name, field)?, self.json(value, field)?);
        }
        Ok(made)
    }
}
