//! What a row of messages has beside their texts: tools, documents and variables for the chat template, calls of tools, and
//! marks of what is learned. Structures may be JSON text.

use serde_json::{Map, Value as Json};

use super::columns::FUNCTIONS;
use super::row_size::RowSize;
use super::{pointer, unexpected};
use crate::data::example::{Context, LEARNED_KEYS, RowProblem};
use crate::data::json;
use crate::data::source::value::{Object, Value, excerpt};
use crate::data::template::OWN_VARIABLES;

/// What the chat template is given beside the messages. `field` finds a value by its canonical name, and its place.
pub(super) fn context<'a>(
    field: impl Fn(&str) -> (Value<'a>, String),
    size: &mut RowSize,
) -> Result<Context, RowProblem> {
    let mut copied = |canonical| -> Result<(Json, String), RowProblem> {
        let (value, at) = field(canonical);
        Ok((size.json(value, &at)?, at))
    };
    let (tools, tools_at) = copied("tools")?;
    let (documents, documents_at) = copied("documents")?;
    let (kwargs, kwargs_at) = copied("chat_template_kwargs")?;
    let mut tools = objects(tools, "a list of tools", &tools_at, size)?;
    if tools_at == pointer("", FUNCTIONS) {
        let is_bare = |function: &&mut Json| function.get("function").is_none();
        for function in tools.as_array_mut().into_iter().flatten().filter(is_bare) {
            *function = serde_json::json!({"type": "function", "function": function.take()});
        }
    }
    let documents = objects(documents, "a list of documents", &documents_at, size)?;
    let template_kwargs = match structure(kwargs, &kwargs_at, size)? {
        Json::Null => Map::new(),
        Json::Object(kwargs) => kwargs,
        other => return Err(unexpected(kwargs_at, "an object", Value::from_json(&other))),
    };
    if let Some(name) = OWN_VARIABLES.iter().find(|name| template_kwargs.contains_key(**name)) {
        let problem = format!("every template is given `{name}`; it cannot be set here");
        return Err(RowProblem::at(pointer(&kwargs_at, name), problem));
    }
    Ok(Context { tools, documents, template_kwargs })
}

/// The context of a prompt, in the keys that datasets use by default.
///
/// # Errors
/// A value of another shape.
pub(crate) fn prompt_context(prompt: &Map<String, Json>) -> Result<Context, RowProblem> {
    let field = |canonical: &str| {
        let names = if canonical == "tools" { vec![canonical, FUNCTIONS] } else { vec![canonical] };
        let present = names.iter().find(|name| prompt.get(**name).is_some_and(|value| !value.is_null()));
        let name = present.unwrap_or(&names[0]);
        (Object::Json(prompt).get(name), pointer("", name))
    };
    context(field, &mut RowSize::new(u64::MAX))
}

/// A value that is a list or an object, or the JSON text of one. An empty text is null.
pub(super) fn structure(value: Json, at: &str, size: &mut RowSize) -> Result<Json, RowProblem> {
    let Json::String(text) = &value else { return Ok(value) };
    if text.trim().is_empty() {
        return Ok(Json::Null);
    }
    match json::from_slice(text.as_bytes()) {
        Ok(parsed) => size.json(Value::from_json(&parsed), at),
        Err(error) => {
            Err(RowProblem::at(at, format!("expected JSON text, found {} ({error})", excerpt(text))))
        }
    }
}

/// A list of objects, as a whole or each of them perhaps as JSON text. An empty list is null.
fn objects(value: Json, expected: &str, at: &str, size: &mut RowSize) -> Result<Json, RowProblem> {
    let mut items = match structure(value, at, size)? {
        Json::Array(items) => items,
        Json::Null => Vec::new(),
        other => return Err(unexpected(at.to_owned(), expected, Value::from_json(&other))),
    };
    for (index, item) in items.iter_mut().enumerate() {
        let at = pointer(at, index);
        *item = structure(item.take(), &at, size)?;
        if !item.is_object() {
            return Err(unexpected(at, "an object", Value::from_json(item)));
        }
    }
    Ok(if items.is_empty() { Json::Null } else { Json::Array(items) })
}

pub(super) fn tool_calls(value: Json, at: &str, size: &mut RowSize) -> Result<Json, RowProblem> {
    let mut calls = objects(value, "a list of tool calls", at, size)?;
    for (index, call) in calls.as_array_mut().into_iter().flatten().enumerate() {
        if let Some(function) = call.get_mut("function") {
            *function = structure(function.take(), &pointer(&pointer(at, index), "function"), size)?;
        }
    }
    Ok(calls)
}

/// Checks the keys of a message that say whether the turn is learned.
pub(super) fn require_marks(role: &str, extra: &Map<String, Json>, at: &str) -> Result<(), RowProblem> {
    for key in LEARNED_KEYS {
        let Some(mark) = extra.get(key) else { continue };
        let problem = match (mark, mark.as_f64()) {
            (Json::Bool(false), _) | (_, Some(0.0)) => continue,
            (Json::Bool(true), _) | (_, Some(1.0)) if role == "assistant" => continue,
            (Json::Bool(true), _) | (_, Some(1.0)) => {
                format!("only assistant turns can be supervised, and this is a {role} turn; remove `{key}`")
            }
            _ => {
                let expected = "true, false, 1 or 0 (whether the turn is learned)";
                unexpected(String::new(), expected, Value::from_json(mark)).problem
            }
        };
        return Err(RowProblem::at(pointer(at, key), problem));
    }
    Ok(())
}
