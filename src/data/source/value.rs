//! One value of a record, whether it lies in a parsed JSON text or in an Arrow array: borrowed, never copied.
//! Knows how to look inside; what is expected there is `schema`'s.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, MapArray, StructArray};
use arrow_schema::DataType;
use serde_json::Value as Json;

use crate::data::json;

/// One value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    /// A number of JSON that is longer than any integer type, or not finite, as it is written.
    Number(&'a str),
    Text(&'a str),
    List(List<'a>),
    Object(Object<'a>),
    /// An Arrow value without counterpart in JSON (binary, timestamps, …).
    Other(&'a DataType),
}

/// A sequence of values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum List<'a> {
    Json(&'a [Json]),
    Arrow { values: &'a ArrayRef, start: usize, len: usize },
}

/// Values by name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Object<'a> {
    Json(&'a serde_json::Map<String, Json>),
    Struct { array: &'a StructArray, row: usize },
    Map { array: &'a MapArray, row: usize },
}

impl<'a> Value<'a> {
    pub(crate) fn from_json(json: &'a Json) -> Value<'a> {
        match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(integer), _) => Value::Integer(integer.into()),
                (None, Some(integer)) => Value::Integer(integer.into()),
                (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Text(text),
            Json::Array(values) => Value::List(List::Json(values)),
            Json::Object(object) => match json::spelled_number(object) {
                Some(spelling) => spelling.parse().map_or(Value::Number(spelling), Value::Integer),
                None => Value::Object(Object::Json(object)),
            },
        }
    }

    /// The value in `row` of an array; null behind its end.
    pub(crate) fn from_arrow(array: &'a ArrayRef, row: usize) -> Value<'a> {
        if row >= array.len() || array.is_null(row) {
            return Value::Null;
        }
        let integer = |value: i128| Value::Integer(value);
        let part = |values: &'a ArrayRef, start: usize, end: usize| {
            Value::List(List::Arrow { values, start, len: end.saturating_sub(start) })
        };
        match array.data_type() {
            DataType::Null => Value::Null,
            DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
            DataType::Int8 => integer(array.as_primitive::<Int8Type>().value(row).into()),
            DataType::Int16 => integer(array.as_primitive::<Int16Type>().value(row).into()),
            DataType::Int32 => integer(array.as_primitive::<Int32Type>().value(row).into()),
            DataType::Int64 => integer(array.as_primitive::<Int64Type>().value(row).into()),
            DataType::UInt8 => integer(array.as_primitive::<UInt8Type>().value(row).into()),
            DataType::UInt16 => integer(array.as_primitive::<UInt16Type>().value(row).into()),
            DataType::UInt32 => integer(array.as_primitive::<UInt32Type>().value(row).into()),
            DataType::UInt64 => integer(array.as_primitive::<UInt64Type>().value(row).into()),
            DataType::Float16 => Value::Float(array.as_primitive::<Float16Type>().value(row).into()),
            DataType::Float32 => Value::Float(array.as_primitive::<Float32Type>().value(row).into()),
            DataType::Float64 => Value::Float(array.as_primitive::<Float64Type>().value(row)),
            DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row)),
            DataType::LargeUtf8 => Value::Text(array.as_string::<i64>().value(row)),
            DataType::Utf8View => Value::Text(array.as_string_view().value(row)),
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let offsets = list.value_offsets();
                part(list.values(), offsets[row] as usize, offsets[row + 1] as usize)
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                let offsets = list.value_offsets();
                part(list.values(), offsets[row] as usize, offsets[row + 1] as usize)
            }
            DataType::ListView(_) => {
                let list = array.as_list_view::<i32>();
                let (start, len) = (list.value_offset(row) as usize, list.value_size(row) as usize);
                part(list.values(), start, start + len)
            }
            DataType::LargeListView(_) => {
                let list = array.as_list_view::<i64>();
                let (start, len) = (list.value_offset(row) as usize, list.value_size(row) as usize);
                part(list.values(), start, start + len)
            }
            DataType::FixedSizeList(_, _) => {
                let list = array.as_fixed_size_list();
                let len = list.value_length() as usize;
                part(list.values(), row * len, (row + 1) * len)
            }
            DataType::Struct(_) => Value::Object(Object::Struct { array: array.as_struct(), row }),
            DataType::Map(_, _) => Value::Object(Object::Map { array: array.as_map(), row }),
            DataType::Dictionary(_, _) => {
                let dictionary = array.as_any_dictionary();
                match dictionary_key(dictionary.keys(), row) {
                    Some(key) => Value::from_arrow(dictionary.values(), key),
                    None => Value::Null,
                }
            }
            other => Value::Other(other),
        }
    }

    /// Null, or the NaN that pandas writes for a missing value.
    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Value::Null | Value::Number("NaN"))
    }

    /// What the value is, as errors name it, with the value itself where it is short.
    pub(crate) fn describe(&self) -> String {
        match self {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Integer(value) => format!("the integer {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Number(spelling) => format!("the number {spelling}"),
            Value::Text(text) => format!("the string {}", excerpt(text)),
            Value::List(list) if list.is_empty() => "an empty list".to_owned(),
            Value::List(list) => format!("a list of {}", list.len()),
            Value::Object(_) => "an object".to_owned(),
            Value::Other(kind) => format!("a value of type {kind}"),
        }
    }
}

/// The beginning of a text, quoted.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

impl<'a> List<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            List::Json(values) => values.len(),
            List::Arrow { len, .. } => *len,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Value<'a>> {
        (0..self.len()).map(move |index| match self {
            List::Json(values) => Value::from_json(&values[index]),
            List::Arrow { values, start, .. } => Value::from_arrow(values, start + index),
        })
    }
}

impl<'a> Object<'a> {
    /// The value of that name, or null.
    pub(crate) fn get(self, name: &str) -> Value<'a> {
        match self {
            Object::Json(object) => object.get(name).map_or(Value::Null, Value::from_json),
            Object::Struct { array, row } => {
                array.column_by_name(name).map_or(Value::Null, |column| Value::from_arrow(column, row))
            }
            Object::Map { .. } => {
                self.entries().find(|(key, _)| *key == name).map_or(Value::Null, |(_, value)| value)
            }
        }
    }

    /// All names and values, in order.
    pub(crate) fn entries(self) -> Box<dyn Iterator<Item = (&'a str, Value<'a>)> + 'a> {
        match self {
            Object::Json(object) => {
                Box::new(object.iter().map(|(name, value)| (name.as_str(), Value::from_json(value))))
            }
            Object::Struct { array, row } => Box::new(
                array
                    .fields()
                    .iter()
                    .zip(array.columns())
                    .map(move |(field, column)| (field.name().as_str(), Value::from_arrow(column, row))),
            ),
            Object::Map { array, row } => {
                let offsets = array.value_offsets();
                let entries = offsets[row] as usize..offsets[row + 1] as usize;
                Box::new(entries.filter_map(move |entry| match Value::from_arrow(array.keys(), entry) {
                    Value::Text(key) => Some((key, Value::from_arrow(array.values(), entry))),
                    _ => None,
                }))
            }
        }
    }
}

fn dictionary_key(keys: &dyn Array, row: usize) -> Option<usize> {
    macro_rules! key {
        ($($kind:ident => $native:ty),*) => {
            match keys.data_type() {
                $(DataType::$kind => usize::try_from(keys.as_primitive::<$native>().value(row)).ok(),)*
                _ => None,
            }
        };
    }
    key!(Int8 => Int8Type, Int16 => Int16Type, Int32 => Int32Type, Int64 => Int64Type,
         UInt8 => UInt8Type, UInt16 => UInt16Type, UInt32 => UInt32Type, UInt64 => UInt64Type)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use arrow_array::types::Int32Type;
    use arrow_array::{
        DictionaryArray, FixedSizeListArray, Int8Array, Int64Array, LargeListArray, ListArray, StringArray,
        StringViewArray, UInt64Array,
    };
    use arrow_buffer::OffsetBuffer;
    use arrow_schema::Field;
    use serde_json::json;

    use super::*;

    fn json_of(array: ArrayRef) -> Json {
        (0..array.len()).map(|row| json(Value::from_arrow(&array, row))).collect()
    }

    /// The value as JSON.
    pub(in crate::data::source) fn json(value: Value<'_>) -> Json {
        match value {
            Value::Null => Json::Null,
            Value::Integer(value) => i64::try_from(value).map_or_else(|_| json!(value as u64), Json::from),
            Value::Text(text) => json!(text),
            Value::List(list) => list.iter().map(json).collect(),
            Value::Object(object) => {
                let members = object.entries().filter(|(_, value)| !value.is_null());
                members.map(|(name, value)| (name.to_owned(), json(value))).collect()
            }
            other => panic!("no {other:?} here"),
        }
    }

    #[test]
    fn arrow_values_are_those_of_json() {
        let item = |kind| Arc::new(Field::new("item", kind, true));
        let integers: ArrayRef = Arc::new(Int64Array::from(vec![1, -2, 3, 4]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c")]));
        assert_eq!(json_of(texts.clone()), json!(["a", null, "c"]));
        assert_eq!(
            json_of(Arc::new(StringViewArray::from(vec!["a string beyond twelve bytes"]))),
            json!(["a string beyond twelve bytes"])
        );
        assert_eq!(json_of(Arc::new(UInt64Array::from(vec![u64::MAX]))), json!([u64::MAX]));
        let list = ListArray::new(
            item(DataType::Int64),
            OffsetBuffer::from_lengths([1, 0, 3]),
            integers.clone(),
            None,
        );
        assert_eq!(json_of(Arc::new(list.slice(1, 2))), json!([[], [-2, 3, 4]]));
        let large = LargeListArray::new(
            item(DataType::Int64),
            OffsetBuffer::from_lengths([4]),
            integers.clone(),
            None,
        );
        assert_eq!(json_of(Arc::new(large)), json!([[1, -2, 3, 4]]));
        let fixed = FixedSizeListArray::new(item(DataType::Int64), 2, integers, None);
        assert_eq!(json_of(Arc::new(fixed.slice(1, 1))), json!([[3, 4]]));
        let structs = StructArray::from(vec![
            (item(DataType::Utf8), texts),
            (
                Arc::new(Field::new("n", DataType::Int8, true)),
                Arc::new(Int8Array::from(vec![1, 2, 3])) as ArrayRef,
            ),
        ]);
        assert_eq!(json_of(Arc::new(structs.slice(1, 2))), json!([{"n": 2}, {"item": "c", "n": 3}]));
        let dictionary: DictionaryArray<Int32Type> =
            [Some("x"), None, Some("y"), Some("x")].into_iter().collect();
        assert_eq!(json_of(Arc::new(dictionary.slice(1, 3))), json!([null, "y", "x"]));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(Value::Text("a\nb").describe(), "the string \"a\\nb\"");
        assert_eq!(excerpt(&"ä".repeat(50)), format!("\"{}\"…", "ä".repeat(40)));
    }
}
