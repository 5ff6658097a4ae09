//! Messages as a template sees them: dictionaries with the keys that the record has.

use minijinja::value::Value;
use serde_json::{Map, Value as Json};

use crate::data::example::Message;

/// The names that reasoning has in datasets, the preferred one first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message of a dataset.
pub(super) fn value(message: &Message) -> Value {
    let said =
        [("role", Value::from(message.role.as_str())), ("content", Value::from(message.content.as_str()))];
    with_reasoning(said.into_iter().chain(extra(&message.extra)), &message.extra)
}

/// A message as JSON, with any keys and contents.
pub(super) fn of_json(message: &Json) -> Value {
    match message.as_object() {
        Some(keys) => with_reasoning(extra(keys), keys),
        None => Value::from_serialize(message),
    }
}

fn extra(keys: &Map<String, Json>) -> impl Iterator<Item = (&str, Value)> {
    keys.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value)))
}

/// A message from its keys. A message that has reasoning under one of its names gets it under the two names that
/// templates read, as in transformers.
fn with_reasoning<'a>(keys: impl Iterator<Item = (&'a str, Value)>, named: &Map<String, Json>) -> Value {
    let reasoning = REASONING
        .iter()
        .find_map(|name| named.get(*name).filter(|value| !value.is_null()))
        .map(Value::from_serialize);
    let first = reasoning.clone().map(|reasoning| ("thinking", reasoning));
    let last = reasoning.map(|reasoning| ("reasoning_content", reasoning));
    first.into_iter().chain(keys).chain(last).map(|(name, value)| (name.to_owned(), value)).collect()
}
