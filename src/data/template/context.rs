//! Messages and their context as a template sees them: the variables of transformers' `apply_chat_template`.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, Value};
use serde_json::{Map, Value as Json};

use super::arguments::{Arguments, with_arguments};
use crate::data::example::{Context, Message};
use crate::data::json;

/// The names that reasoning has in datasets, the preferred one first.
pub(crate) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The variables that every template is given, which no `chat_template_kwargs` may set.
pub(crate) const OWN_VARIABLES: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// A message of a dataset.
pub(super) fn message(message: &Message, arguments: Arguments) -> Value {
    let said = [("role", message.role.as_str()), ("content", message.content.as_str())];
    let said = said.map(|(name, text)| (name, Value::from(text)));
    with_reasoning(said.into_iter().chain(keys(&message.extra, arguments)), &message.extra)
}

/// A message as JSON, with any keys and contents.
pub(super) fn json_message(message: &Json, arguments: Arguments) -> Value {
    match message.as_object() {
        Some(all) => with_reasoning(keys(all, arguments), all),
        None => value(message),
    }
}

fn keys(all: &Map<String, Json>, arguments: Arguments) -> impl Iterator<Item = (&str, Value)> {
    all.iter().map(move |(name, content)| match name.as_str() {
        "tool_calls" => (name.as_str(), value(&with_arguments(content, arguments))),
        name => (name, value(content)),
    })
}

/// A message from its keys. A message that has reasoning under one of its names gets it under the two names that
/// templates read, as in transformers.
fn with_reasoning<'a>(keys: impl Iterator<Item = (&'a str, Value)>, named: &Map<String, Json>) -> Value {
    let reasoning = REASONING
        .iter()
        .find_map(|name| named.get(*name).filter(|reasoning| !reasoning.is_null()))
        .map(value);
    let first = reasoning.clone().map(|reasoning| ("thinking", reasoning));
    let last = reasoning.map(|reasoning| ("reasoning_content", reasoning));
    first.into_iter().chain(keys).chain(last).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The variables of a render.
pub(super) fn variables(
    special_tokens: &[(String, String)],
    template_kwargs: &Map<String, Json>,
    context: &Context,
    messages: Vec<Value>,
    add_generation_prompt: bool,
) -> Value {
    let special_tokens =
        special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
    let kwargs = template_kwargs.iter().chain(&context.template_kwargs);
    let own: [Value; 4] = [
        Value::from(messages),
        value(&context.tools),
        value(&context.documents),
        Value::from(add_generation_prompt),
    ];
    special_tokens
        .chain(kwargs.map(|(name, content)| (name.as_str(), value(content))))
        .chain(OWN_VARIABLES.into_iter().zip(own))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// A JSON value.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(members) => match json::spelled_number(members) {
            Some(spelling) => number(spelling),
            None => members.iter().map(|(name, member)| (name.clone(), value(member))).collect(),
        },
        other => Value::from_serialize(other),
    }
}

/// A number that JSON libraries for fixed-size numbers cannot hold.
fn number(spelling: &str) -> Value {
    if let Ok(integer) = spelling.parse::<i128>() {
        return Value::from(integer);
    }
    match spelling {
        "NaN" => Value::from(f64::NAN),
        "Infinity" => Value::from(f64::INFINITY),
        "-Infinity" => Value::from(f64::NEG_INFINITY),
        digits => Value::from_object(LongInteger(digits.to_owned())),
    }
}

/// An integer that the engine has no number for. It can be written.
#[derive(Debug)]
pub(super) struct LongInteger(pub(super) String);

impl Object for LongInteger {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}
