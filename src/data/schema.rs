//! What a record means: from the columns of a row to an [`Example`], for every record shape. Knows columns by
//! name and type; where a row lies and in which kind of file, it does not ask.

use std::path::Path;

use arrow::datatypes::DataType;
use serde_json::Map;

use super::example::{Example, Message};
use super::source::Error;
use super::source::value::{List, Object, Value, excerpt};
use super::spec::{DatasetSpec, Format};

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

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Messages,
    Integers,
    /// Not a column, but the name of a key inside each message.
    MessageKey,
}

/// A field of a record shape.
#[derive(Clone, Debug)]
struct Field {
    canonical: &'static str,
    kind: Kind,
    required: bool,
    /// The columns that may hold it; the first that is there and not null does.
    columns: Vec<String>,
    /// The recipe named the column.
    mapped: bool,
}

/// What is wrong with one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RowFault {
    /// JSON pointer of the field.
    pub(super) field: String,
    pub(super) problem: String,
}

/// The fields of one dataset: which columns they come from, and how they become an example.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    format: Format,
    fields: Vec<Field>,
}

impl Fields {
    /// The fields of a format, mapped to the dataset's columns.
    pub(super) fn new(spec: &DatasetSpec) -> Result<Fields, Error> {
        let field = |canonical: &'static str, kind, required| Field {
            canonical,
            kind,
            required,
            columns: vec![canonical.to_owned()],
            mapped: false,
        };
        let mut fields = match spec.format {
            Format::Messages => {
                let mut messages = field("messages", Kind::Messages, true);
                messages.columns.push("conversations".to_owned());
                vec![
                    messages,
                    field("role", Kind::MessageKey, false),
                    field("content", Kind::MessageKey, false),
                ]
            }
            Format::Alpaca => vec![
                field("instruction", Kind::Text, true),
                field("input", Kind::Text, false),
                field("output", Kind::Text, true),
            ],
            Format::PromptCompletion => {
                vec![field("prompt", Kind::Text, true), field("completion", Kind::Text, true)]
            }
            Format::Text => vec![field("text", Kind::Text, true)],
            Format::Tokens => {
                vec![field("input_ids", Kind::Integers, true), field("labels", Kind::Integers, false)]
            }
        };
        for (name, column) in &spec.fields {
            let known: Vec<&str> = fields.iter().map(|field| field.canonical).collect();
            match fields.iter_mut().find(|field| field.canonical == name) {
                Some(field) => (field.columns, field.mapped) = (vec![column.clone()], true),
                None => {
                    return Err(Error::UnknownField {
                        name: name.clone(),
                        format: format_name(spec.format),
                        known: list(&known),
                        suggestion: nearest(name, &known)
                            .map(|name| format!("; did you mean `{name}`?"))
                            .unwrap_or_default(),
                    });
                }
            }
        }
        Ok(Fields { format: spec.format, fields })
    }

    /// The columns of CSV files whose cells hold JSON, a table of text having no lists.
    pub(super) fn json_columns(&self) -> Vec<&str> {
        let lists = self.fields.iter().filter(|field| matches!(field.kind, Kind::Messages | Kind::Integers));
        lists.flat_map(|field| &field.columns).map(String::as_str).collect()
    }

    /// Which of a file's columns are read. Checks that those the format needs are there, and, where columns
    /// have types, that they fit.
    pub(super) fn choose(
        &self,
        file: &Path,
        columns: &[(&str, Option<&DataType>)],
    ) -> Result<Vec<usize>, Error> {
        let mut chosen = Vec::new();
        for field in self.fields.iter().filter(|field| field.kind != Kind::MessageKey) {
            for wanted in &field.columns {
                let Some(index) = columns.iter().position(|(name, _)| name == wanted) else { continue };
                if let Some(data_type) = columns[index].1
                    && !field.kind.accepts(data_type)
                {
                    return Err(Error::ColumnType {
                        file: file.to_owned(),
                        column: wanted.clone(),
                        expected: field.kind.expected(),
                        found: data_type.to_string(),
                    });
                }
                if !chosen.contains(&index) {
                    chosen.push(index);
                }
            }
            let there = field.columns.iter().any(|wanted| columns.iter().any(|(name, _)| name == wanted));
            if !there && (field.required || field.mapped) {
                return Err(self.missing(file, field, columns));
            }
        }
        Ok(chosen)
    }

    fn missing(&self, file: &Path, field: &Field, columns: &[(&str, Option<&DataType>)]) -> Error {
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let wanted = &field.columns[0];
        let usual = usual_names(field.canonical).iter().copied().find(|name| names.contains(name));
        let suggestion = match nearest(wanted, &names).or(usual) {
            Some(name) if field.mapped => format!("; did you mean `{name}`?"),
            Some(name) => format!("; did you mean `fields = {{ {} = \"{name}\" }}`?", field.canonical),
            None => format!("; if one of them is it, say `fields = {{ {} = \"…\" }}`", field.canonical),
        };
        Error::MissingColumn {
            file: file.to_owned(),
            column: wanted.clone(),
            field: field.canonical,
            columns: if names.is_empty() { "none".to_owned() } else { list(&names) },
            suggestion,
        }
    }

    /// The example that a row holds.
    pub(super) fn example(&self, row: Object<'_>) -> Result<Example, RowFault> {
        Ok(match self.format {
            Format::Messages => Example::Messages(self.messages(row)?),
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

    fn text<'a>(&self, row: Object<'a>, canonical: &str) -> Result<&'a str, RowFault> {
        match self.value(row, canonical) {
            (Value::Text(text), _) => Ok(text),
            (other, field) => Err(unexpected(field, "a string", other)),
        }
    }

    fn optional_text<'a>(&self, row: Object<'a>, canonical: &str) -> Result<Option<&'a str>, RowFault> {
        match self.value(row, canonical) {
            (Value::Null, _) => Ok(None),
            (Value::Text(text), _) => Ok(Some(text)),
            (other, field) => Err(unexpected(field, "a string", other)),
        }
    }

    fn tokens(&self, row: Object<'_>) -> Result<Example, RowFault> {
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
            return Err(RowFault { field, problem });
        }
        Ok(Example::Tokens { input_ids, labels: Some(labels) })
    }

    fn messages(&self, row: Object<'_>) -> Result<Vec<Message>, RowFault> {
        let (value, field) = self.value(row, "messages");
        let list = match value {
            Value::List(list) if !list.is_empty() => list,
            other => return Err(unexpected(field, "a list of at least one message", other)),
        };
        let message = |(index, value)| self.message(value, &pointer(&field, index));
        list.iter().enumerate().map(message).collect()
    }

    fn message(&self, value: Value<'_>, at: &str) -> Result<Message, RowFault> {
        let Value::Object(message) = value else {
            return Err(unexpected(at.to_owned(), "a message with a role and a content", value));
        };
        let key = |canonical: &str| -> &str {
            let field = self.fields.iter().find(|field| field.canonical == canonical);
            field.map_or("", |field| &field.columns[0])
        };
        // `from` and `value` are the keys of the other widespread layout, whose speakers have other names.
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
                    return Err(RowFault { field: role_at, problem });
                }
            },
            other => return Err(unexpected(role_at, "a role", other)),
        };
        let content_at = pointer(at, content_key);
        let content = match message.get(content_key) {
            Value::Text(text) => text.to_owned(),
            Value::List(parts) => joined_parts(parts, &content_at)?,
            Value::Null if !message.get("tool_calls").is_null() => String::new(),
            other => return Err(unexpected(content_at, "a string or a list of text parts", other)),
        };
        let extra: Map<_, _> = message
            .entries()
            .filter(|(name, value)| *name != role_key && *name != content_key && !value.is_null())
            .map(|(name, value)| (name.to_owned(), value.to_json()))
            .collect();
        Ok(Message { role: role.to_owned(), content, extra })
    }
}

/// The text of `[{"type": "text", "text": …}, …]`, joined as it stands.
fn joined_parts(parts: List<'_>, at: &str) -> Result<String, RowFault> {
    let mut joined = String::new();
    for (index, part) in parts.iter().enumerate() {
        let at = pointer(at, index);
        let Value::Object(part) = part else {
            return Err(unexpected(at, "a part (`{\"type\": \"text\", \"text\": …}`)", part));
        };
        match (part.get("type"), part.get("text")) {
            (Value::Text("text"), Value::Text(text)) => joined += text,
            (Value::Text("text"), other) => return Err(unexpected(pointer(&at, "text"), "a string", other)),
            (other, _) => {
                let expected = "`text` (parts of other kinds are not trained on)";
                return Err(unexpected(pointer(&at, "type"), expected, other));
            }
        }
    }
    Ok(joined)
}

fn integers<T>(
    value: Value<'_>,
    field: &str,
    expected: &str,
    convert: impl Fn(i128) -> Option<T>,
) -> Result<Vec<T>, RowFault> {
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

fn unexpected(field: String, expected: &str, found: Value<'_>) -> RowFault {
    RowFault { field, problem: format!("expected {expected}, found {}", found.describe()) }
}

/// A JSON pointer (RFC 6901), one step further.
fn pointer(base: &str, step: impl ToString) -> String {
    format!("{base}/{}", step.to_string().replace('~', "~0").replace('/', "~1"))
}

impl Kind {
    fn expected(self) -> &'static str {
        match self {
            Kind::Text | Kind::MessageKey => "strings",
            Kind::Messages => "lists of messages",
            Kind::Integers => "lists of integers",
        }
    }

    /// Whether values of that type can be what the field holds. A column of nulls can: each row will say so.
    fn accepts(self, data_type: &DataType) -> bool {
        let item = match data_type {
            DataType::Null => return true,
            DataType::Dictionary(_, values) => return self.accepts(values),
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::ListView(item)
            | DataType::LargeListView(item)
            | DataType::FixedSizeList(item, _) => Some(item.data_type()),
            _ => None,
        };
        match self {
            Kind::Text | Kind::MessageKey => data_type.is_string(),
            Kind::Messages => item.is_some_and(|item| {
                matches!(item, DataType::Struct(_) | DataType::Map(_, _) | DataType::Null)
            }),
            Kind::Integers => item.is_some_and(|item| item.is_integer() || item.is_null()),
        }
    }
}

/// A format as the recipe writes it.
fn format_name(format: Format) -> &'static str {
    match format {
        Format::Messages => "messages",
        Format::Alpaca => "alpaca",
        Format::PromptCompletion => "prompt-completion",
        Format::Text => "text",
        Format::Tokens => "tokens",
    }
}

/// Other names under which datasets have a field, to suggest them; never to take them unasked.
fn usual_names(canonical: &str) -> &'static [&'static str] {
    match canonical {
        "messages" => &["conversation", "dialog", "chat", "turns"],
        "instruction" => &["question", "prompt"],
        "output" | "completion" => &["response", "answer", "output", "completion", "target"],
        "prompt" => &["question", "instruction", "input", "query"],
        "text" => &["content", "document", "body"],
        "input_ids" => &["tokens", "ids"],
        _ => &[],
    }
}

fn nearest<'a>(wanted: &str, names: &[&'a str]) -> Option<&'a str> {
    let near = names.iter().map(|name| (strsim::damerau_levenshtein(wanted, name), *name));
    near.filter(|(distance, _)| *distance <= wanted.len().div_ceil(3)).min().map(|(_, name)| name)
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
