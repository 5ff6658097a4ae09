//! The memory that one row takes as an example. A columnar file may store a long text once and refer to it a thousand
//! times in one row, and each reference becomes a text of its own; memory is counted before it is allocated.

use serde_json::{Map, Value as Json};

use super::super::source::value::{Object, Value};
use crate::data::example::RowProblem;
use crate::data::json;
use crate::units::Bytes;

/// About the bytes of a value beside its text, of a member's name beside its text, and of a message.
const VALUE: u64 = 80;

/// The memory that a row takes so far, and its limit.
pub(super) struct RowSize {
    taken: u64,
    most: u64,
}

impl RowSize {
    pub(super) fn new(most: u64) -> RowSize {
        RowSize { taken: 0, most }
    }

    /// Counts bytes before they are allocated.
    pub(super) fn add(&mut self, bytes: u64, field: &str) -> Result<(), RowProblem> {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken <= self.most {
            return Ok(());
        }
        let problem = format!(
            "the row takes more than {} in memory, more than its file accounts for: the row refers to the same values many \
             times; remove the row or shorten it",
            Bytes(self.most)
        );
        Err(RowProblem { field: field.to_owned(), problem })
    }

    /// Counts values without their texts, before they are allocated.
    pub(super) fn values(&mut self, count: usize, field: &str) -> Result<(), RowProblem> {
        self.add(VALUE.saturating_mul(count as u64), field)
    }

    /// A text of the row.
    pub(super) fn text(&mut self, text: &str, field: &str) -> Result<String, RowProblem> {
        self.add(text.len() as u64, field)?;
        Ok(text.to_owned())
    }

    /// A value as JSON, itself counted by the caller. A member that is null is left out of an Arrow struct, where it says
    /// that other rows have such a member.
    pub(super) fn json(&mut self, value: Value<'_>, field: &str) -> Result<Json, RowProblem> {
        Ok(match value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(value),
            Value::Integer(value) => i64::try_from(value)
                .map(Json::from)
                .or_else(|_| u64::try_from(value).map(Json::from))
                .unwrap_or_else(|_| json::number(&value.to_string())),
            Value::Float(value) => json::float(value),
            Value::Number(spelling) => json::number(spelling),
            Value::Text(text) => Json::String(self.text(text, field)?),
            Value::List(list) => {
                self.values(list.len(), field)?;
                // With the exact capacity: a list that grows takes twice its length.
                let mut made = Vec::with_capacity(list.len());
                for value in list.iter() {
                    made.push(self.json(value, field)?);
                }
                Json::Array(made)
            }
            Value::Object(object) => {
                let keeps_nulls = !matches!(object, Object::Struct { .. });
                let members = object.entries().filter(|(_, value)| keeps_nulls || !value.is_null());
                Json::Object(self.members(members, field)?)
            }
            Value::Other(kind) => Json::String(format!("<{kind}>")),
        })
    }

    /// Members of an object as JSON.
    pub(super) fn members<'a>(
        &mut self,
        members: impl Iterator<Item = (&'a str, Value<'a>)>,
        field: &str,
    ) -> Result<Map<String, Json>, RowProblem> {
        let mut made = Map::new();
        for (name, value) in members {
            self.values(2, field)?;
            made.insert(self.text(name, field)?, self.json(value, field)?);
        }
        Ok(made)
    }
}
