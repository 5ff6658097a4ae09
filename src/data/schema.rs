//! The meaning of a record: from the columns of a row to an [`Example`], for every record shape. Knows columns by name
//! and type, but neither files nor their kinds.

use super::example::{Example, Message, RowProblem};
use super::source::value::{List, Object, Value, excerpt};
use super::spec::Format;
pub(super) use columns::Fields;
use row_size::RowSize;

mod columns;
mod row_size;

#[cfg(test)]
mod tests;

/// The label of a token that is not supervised.
const UNSUPERVISED: i64 = -100;

/// The prompt that the Stanford Alpaca project published with its data, around an instruction and its input.
pub fn alpaca_prompt(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes \
             the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
        )
    } else {
        format!(
            "Below is an instruction that describes a task, paired with an input that provides further \
             context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
        )
    }
}

impl Fields {
    /// The example in a row, which may take `most` bytes of memory.
    pub(super) fn example(&self, row: Object<'_>, most: u64) -> Result<Example, RowProblem> {
        let size = &mut RowSize::new(most);
        Ok(match self.format {
            Format::Messages => Example::Messages(self.messages(row, size)?),
            Format::Alpaca => {
                let input = self.optional_text(row, "input")?.unwrap_or_default();
                Example::PromptCompletion {
                    prompt: alpaca_prompt(self.text(row, "instruction")?, input),
                    completion: self.text(row, "output")?.to_owned(),
                }
            }
            Format::PromptCompletion => Example::PromptCompletion {
                prompt: self.text(row, "prompt")?.to_owned(),
                completion: self.text(row, "completion")?.to_owned(),
            },
            Format::Text => Example::Text(self.text(row, "text")?.to_owned()),
            Format::Tokens => self.tokens(row)?,
        })
    }

    /// A field's value and its JSON pointer.
    fn value<'a>(&self, row: Object<'a>, canonical: &str) -> (Value<'a>, String) {
        let columns = self.fields.iter().find(|field| field.canonical == canonical);
        let columns = columns.map_or(&[] as &[String], |field| &field.columns);
        for column in columns {
            let value = row.get(column);
            if !value.is_null() {
                return (value, pointer("", column));
            }
        }
        (Value::Null, pointer("", columns.first().map_or(canonical, String::as_str)))
    }

    fn text<'a>(&self, row: Object<'a>, canonical: &str) -> Result<&'a str, RowProblem> {
        match self.value(row, canonical) {
            (Value::Text(text), _) => Ok(text),
            (other, field) => Err(unexpected(field, "a string", other)),
        }
    }

    fn optional_text<'a>(&self, row: Object<'a>, canonical: &str) -> Result<Option<&'a str>, RowProblem> {
        match self.value(row, canonical) {
            (Value::Null, _) => Ok(None),
            (Value::Text(text), _) => Ok(Some(text)),
            (other, field) => Err(unexpected(field, "a string", other)),
        }
    }

    fn tokens(&self, row: Object<'_>) -> Result<Example, RowProblem> {
        let id = |value: i128| u32::try_from(value).ok();
        let label = |value: i128| {
            let label = i64::try_from(value).ok()?;
            (label == UNSUPERVISED || u32::try_from(label).is_ok()).then_some(label)
        };
        let (value, field) = self.value(row, "input_ids");
        let input_ids = integers(value, &field, "a token id (0 to 4294967295)", id)?;
        let (value, field) = self.value(row, "labels");
        if value.is_null() {
            return Ok(Example::Tokens { input_ids, labels: None });
        }
        let labels = integers(value, &field, "a token id or -100", label)?;
        if labels.len() != input_ids.len() {
            let problem =
                format!("expected {} labels, one for each token, found {}", input_ids.len(), labels.len());
            return Err(RowProblem { field, problem });
        }
        Ok(Example::Tokens { input_ids, labels: Some(labels) })
    }

    fn messages(&self, row: Object<'_>, size: &mut RowSize) -> Result<Vec<Message>, RowProblem> {
        let (value, field) = self.value(row, "messages");
        let list = match value {
            Value::List(list) if !list.is_empty() => list,
            other => return Err(unexpected(field, "a list of at least one message", other)),
        };
        let message = |(index, value)| self.message(value, &pointer(&field, index), size);
        list.iter().enumerate().map(message).collect()
    }

    fn message(&self, value: Value<'_>, at: &str, size: &mut RowSize) -> Result<Message, RowProblem> {
        let Value::Object(message) = value else {
            return Err(unexpected(at.to_owned(), "a message with a role and a content", value));
        };
        let key = |canonical: &str| -> &str {
            let field = self.fields.iter().find(|field| field.canonical == canonical);
            field.map_or("", |field| &field.columns[0])
        };
        // `from` and `value` are the keys of the other widespread layout, whose roles have other names.
        let openai = !message.get(key("role")).is_null() || message.get("from").is_null();
        let (role_key, content_key) = if openai { (key("role"), key("content")) } else { ("from", "value") };
        let role_at = pointer(at, role_key);
        let role = match message.get(role_key) {
            Value::Text(name) => match name {
                "system" | "user" | "assistant" | "tool" => name,
                "human" if !openai => "user",
                "gpt" if !openai => "assistant",
                other => {
                    let known = if openai { "" } else { ", human, gpt" };
                    let problem = format!(
                        "expected a role (system, user, assistant, tool{known}), found {}",
                        excerpt(other)
                    );
                    return Err(RowProblem { field: role_at, problem });
                }
            },
            other => return Err(unexpected(role_at, "a role", other)),
        };
        let content_at = pointer(at, content_key);
        let content = match message.get(content_key) {
            Value::Text(text) => size.text(text, &content_at)?,
            Value::List(parts) => joined_parts(parts, &content_at, size)?,
            Value::Null if !message.get("tool_calls").is_null() => String::new(),
            other => return Err(unexpected(content_at, "a string or a list of text parts", other)),
        };
        let others = message.entries().filter(|(name, _)| *name != role_key && *name != content_key);
        let extra = size.members(others, at)?;
        // The role, and the message itself.
        size.values(2, at)?;
        Ok(Message { role: role.to_owned(), content, extra })
    }
}

/// The texts of `[{"type": "text", "text": …}, …]`, joined without a separator.
fn joined_parts(parts: List<'_>, at: &str, size: &mut RowSize) -> Result<String, RowProblem> {
    // Joined at once: a text that grows takes twice its length.
    let mut texts = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let at = pointer(at, index);
        let Value::Object(part) = part else {
            return Err(unexpected(at, "a part (`{\"type\": \"text\", \"text\": …}`)", part));
        };
        match (part.get("type"), part.get("text")) {
            (Value::Text("text"), Value::Text(text)) => {
                size.values(1, &at)?;
                size.add(text.len() as u64, &at)?;
                texts.push(text);
            }
            (Value::Text("text"), other) => return Err(unexpected(pointer(&at, "text"), "a string", other)),
            (other, _) => {
                let expected = "`text` (parts of other kinds are not trained on)";
                return Err(unexpected(pointer(&at, "type"), expected, other));
            }
        }
    }
    Ok(texts.concat())
}

fn integers<T>(
    value: Value<'_>,
    field: &str,
    expected: &str,
    convert: impl Fn(i128) -> Option<T>,
) -> Result<Vec<T>, RowProblem> {
    let Value::List(list) = value else {
        return Err(unexpected(field.to_owned(), "a list of integers", value));
    };
    let integer = |(index, value)| {
        match value {
            Value::Integer(integer) => convert(integer).ok_or(value),
            other => Err(other),
        }
        .map_err(|found| unexpected(pointer(field, index), expected, found))
    };
    list.iter().enumerate().map(integer).collect()
}

fn unexpected(field: String, expected: &str, found: Value<'_>) -> RowProblem {
    RowProblem { field, problem: format!("expected {expected}, found {}", found.describe()) }
}

/// A JSON pointer (RFC 6901), one step further.
fn pointer(base: &str, step: impl ToString) -> String {
    format!("{base}/{}", step.to_string().replace('~', "~0").replace('/', "~1"))
}
