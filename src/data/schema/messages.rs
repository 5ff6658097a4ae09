//! The messages of a conversation, in the layouts in which datasets have them: roles under many names, contents in parts,
//! calls of tools as JSON text, the whole list as JSON text.

use serde_json::{Map, Value as Json, json};

use super::context::{require_marks, structure, tool_calls};
use super::row_size::RowSize;
use super::{Fields, pointer, unexpected};
use crate::data::example::{Message, RowProblem, TRAIN_KEY};
use crate::data::json;
use crate::data::roles;
use crate::data::source::not_json;
use crate::data::source::value::{List, Object, Value, excerpt};

impl Fields {
    /// The conversation in a row, a `system` column of its own in front.
    pub(super) fn messages(&self, row: Object<'_>, size: &mut RowSize) -> Result<Vec<Message>, RowProblem> {
        let (value, field) = self.value(row, "messages");
        let mut messages = match value {
            Value::Text(text) if text.trim_start().starts_with('[') => {
                self.message_list(Value::from_json(&parsed(text, &field)?), &field, size)?
            }
            value => self.message_list(value, &field, size)?,
        };
        self.add_system(row, &mut messages, size)?;
        Ok(messages)
    }

    /// Puts a `system` column of its own in front.
    pub(super) fn add_system(
        &self,
        row: Object<'_>,
        messages: &mut Vec<Message>,
        size: &mut RowSize,
    ) -> Result<(), RowProblem> {
        let (system, at) = self.value(row, "system");
        match (system, messages.first()) {
            (Value::Null | Value::Text(""), _) => {}
            (Value::Text(text), Some(first)) if first.role == "system" => {
                if first.content != text {
                    let problem = "this column and the first message both are system prompts, and they differ; remove one \
                                   of them, or add `ignore = [\"system\"]` to the `[[dataset]]`";
                    return Err(RowProblem::at(at, problem));
                }
            }
            (Value::Text(text), _) => {
                size.values(2, &at)?;
                messages.insert(0, Message::new("system", size.text(text, &at)?));
            }
            (other, _) => return Err(unexpected(at, "a string", other)),
        }
        Ok(())
    }

    /// Earlier turns, as pairs of what the user and the assistant said.
    pub(super) fn history(&self, row: Object<'_>, size: &mut RowSize) -> Result<Vec<Message>, RowProblem> {
        let (value, at) = self.value(row, "history");
        let pairs = match structure(size.json(value, &at)?, &at, size)? {
            Json::Null => Vec::new(),
            Json::Array(pairs) => pairs,
            other => return Err(unexpected(at, "a list of pairs", Value::from_json(&other))),
        };
        let mut messages = Vec::new();
        for (index, pair) in pairs.iter().enumerate() {
            let texts =
                pair.as_array().and_then(|pair| pair.iter().map(Json::as_str).collect::<Option<Vec<_>>>());
            let Some([user, assistant]) = texts.as_deref() else {
                let expected = "a pair of texts (what the user said, what the assistant answered)";
                return Err(unexpected(pointer(&at, index), expected, Value::from_json(pair)));
            };
            messages.extend([Message::new("user", *user), Message::new("assistant", *assistant)]);
        }
        Ok(messages)
    }

    pub(super) fn message_list(
        &self,
        value: Value<'_>,
        field: &str,
        size: &mut RowSize,
    ) -> Result<Vec<Message>, RowProblem> {
        let list = match value {
            Value::List(list) if !list.is_empty() => list,
            Value::Object(columns) => {
                let columns = size.members(columns.entries(), field)?;
                let messages = of_columns(&columns);
                return match messages.is_empty() {
                    true => Err(unexpected(field.to_owned(), "a list of at least one message", value)),
                    false => self.message_list(Value::from_json(&Json::Array(messages)), field, size),
                };
            }
            other => return Err(unexpected(field.to_owned(), "a list of at least one message", other)),
        };
        let message = |(index, value)| self.message(value, &pointer(field, index), size);
        list.iter().enumerate().map(message).collect()
    }

    pub(super) fn message(
        &self,
        value: Value<'_>,
        at: &str,
        size: &mut RowSize,
    ) -> Result<Message, RowProblem> {
        let message = match value {
            Value::Object(message) => message,
            Value::Text(text) if text.trim_start().starts_with('{') => {
                return self.message(Value::from_json(&parsed(text, at)?), at, size);
            }
            other => return Err(unexpected(at.to_owned(), "a message with a role and a content", other)),
        };
        let key = |canonical: &str| -> &str {
            let field = self.fields.iter().find(|field| field.canonical == canonical);
            field.map_or("", |field| &field.columns[0])
        };
        // `from` and `value` are the keys of the other widespread layout.
        let openai = !message.get(key("role")).is_null() || message.get("from").is_null();
        let (role_key, content_key) = if openai { (key("role"), key("content")) } else { ("from", "value") };
        let role_at = pointer(at, role_key);
        let Value::Text(name) = message.get(role_key) else {
            return Err(unexpected(role_at, "a role", message.get(role_key)));
        };
        let is_call = roles::is_call(name) && roles::role(name, &self.roles).is_none();
        let role = match is_call {
            true => "assistant",
            false => roles::role(name, &self.roles).ok_or_else(|| unknown_role(role_at, name))?,
        };
        let others = message.entries().filter(|(name, value)| {
            let is_ignored = self.ignore.iter().any(|ignored| ignored == name);
            *name != role_key && *name != content_key && !is_ignored && !value.is_null()
        });
        let mut extra = size.members(others, at)?;
        let content_at = pointer(at, content_key);
        if let Some(calls) = extra.get_mut("tool_calls").filter(|calls| **calls != Json::Array(Vec::new())) {
            *calls = tool_calls(calls.take(), &pointer(at, "tool_calls"), size)?;
            if calls.is_null() {
                extra.shift_remove("tool_calls");
            }
        }
        let mark = key("train");
        if mark != TRAIN_KEY
            && let Some(value) = extra.get(mark).cloned()
        {
            extra.insert(TRAIN_KEY.to_owned(), value);
        }
        require_marks(role, &extra, at)?;
        if let Some(call @ Json::Object(_)) = extra.get("function_call")
            && !extra.contains_key("tool_calls")
        {
            let calls = json!([{"type": "function", "function": call}]);
            extra.remove("function_call");
            extra.insert("tool_calls".to_owned(), calls);
        }
        let content = match message.get(content_key) {
            Value::Text(text) if is_call => {
                size.add(text.len() as u64, &content_at)?;
                extra.insert("tool_calls".to_owned(), calls(text, &content_at)?);
                String::new()
            }
            Value::Text(text) => size.text(text, &content_at)?,
            Value::List(parts) => joined_parts(parts, &content_at, size)?,
            Value::Null if extra.contains_key("tool_calls") => String::new(),
            other => return Err(unexpected(content_at, "a string or a list of text parts", other)),
        };
        // The role, and the message itself.
        size.values(2, at)?;
        Ok(Message { role: role.to_owned(), content, extra })
    }
}

/// The messages of `{"role": [...], "content": [...]}`, which `datasets` makes of a list of messages; none of another object.
fn of_columns(columns: &Map<String, Json>) -> Vec<Json> {
    let lists: Option<Vec<_>> =
        columns.iter().map(|(name, column)| Some((name, column.as_array()?))).collect();
    let lists = lists.unwrap_or_default();
    let count = lists.first().map_or(0, |(_, list)| list.len());
    if lists.iter().any(|(_, list)| list.len() != count) {
        return Vec::new();
    }
    let message = |index: usize| -> Json {
        lists.iter().map(|(name, list)| ((*name).clone(), list[index].clone())).collect::<Map<_, _>>().into()
    };
    (0..count).map(message).collect()
}

fn unknown_role(field: String, name: &str) -> RowProblem {
    let known: Vec<&str> = roles::ROLES.iter().map(|(role, _)| *role).collect();
    let problem = format!(
        "unknown role {}; tune knows {} and their usual other names: say which one it is, as in `roles = {{ user = {name:?} }}`, \
         in the `[[dataset]]`",
        excerpt(name),
        known.join(", ")
    );
    RowProblem::at(field, problem)
}

/// The value of a text that holds JSON where a structure is meant.
pub(super) fn parsed(text: &str, field: &str) -> Result<Json, RowProblem> {
    json::from_slice(text.as_bytes()).map_err(|error| {
        let problem = not_json(&error, text.as_bytes(), 1);
        RowProblem::at(field, format!("this column holds a structure as JSON text; {problem}"))
    })
}

/// Calls of tools as messages have them, of one call or a list of calls as JSON text.
fn calls(text: &str, field: &str) -> Result<Json, RowProblem> {
    let calls = match parsed(text, field)? {
        Json::Array(calls) => calls,
        call => vec![call],
    };
    if calls.iter().any(|call| call.get("name").is_none()) {
        return Err(RowProblem::at(field, "expected a call of a tool (`{\"name\": …, \"arguments\": …}`)"));
    }
    let call = |call| json!({"type": "function", "function": call});
    Ok(calls.into_iter().map(call).collect())
}

/// The texts of `[{"type": "text", "text": …}, …]`, joined without a separator.
fn joined_parts(parts: List<'_>, at: &str, size: &mut RowSize) -> Result<String, RowProblem> {
    // Joined at once: a text that grows takes twice its length.
    let mut texts = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let at = pointer(at, index);
        let text = match part {
            Value::Text(text) => text,
            Value::Object(part) => part_text(part, &at)?,
            other => return Err(unexpected(at, "a part (`{\"type\": \"text\", \"text\": …}`)", other)),
        };
        size.values(1, &at)?;
        size.add(text.len() as u64, &at)?;
        texts.push(text);
    }
    Ok(texts.concat())
}

/// The text of a part, in the words of several makers.
fn part_text<'a>(part: Object<'a>, at: &str) -> Result<&'a str, RowProblem> {
    match part.get("type") {
        Value::Text("text" | "input_text" | "output_text") | Value::Null => {}
        other => {
            let expected = "`text` (training takes text alone: leave parts of other kinds, or the row, out)";
            return Err(unexpected(pointer(at, "type"), expected, other));
        }
    }
    match (part.get("text"), part.get("value")) {
        (Value::Text(text), _) | (Value::Null, Value::Text(text)) => Ok(text),
        (other, _) => Err(unexpected(pointer(at, "text"), "a string", other)),
    }
}
