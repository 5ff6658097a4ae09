//! The meaning of a record: from the columns of a row to an [`Example`], for every record shape. Knows columns by name
//! and type, but neither files nor their kinds.

use super::example::{Context, Conversation, Example, Message, RowProblem};
use super::source::value::{Object, Value};
use super::spec::{Format, PromptSpec};
pub(super) use columns::{Fields, usual_names};
pub(crate) use context::prompt_context;
use row_size::RowSize;

mod answers;
mod columns;
mod context;
mod messages;
mod row_size;
mod unread;

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

impl PromptSpec {
    /// The prompt of a row of `format`: `given` is its instruction or prompt, as other formats have it.
    pub fn fill(&self, format: Format, given: &str, input: &str) -> String {
        let without_input = self.without_input.as_ref().filter(|_| input.is_empty());
        match (without_input.or(self.template.as_ref()), format) {
            (Some(template), Format::Alpaca) => filled(template, &[("instruction", given), ("input", input)]),
            (Some(template), _) => filled(template, &[("prompt", given)]),
            (None, Format::Alpaca) => alpaca_prompt(given, input),
            (None, _) => given.to_owned(),
        }
    }
}

/// `template` with each `{name}` replaced by its value; braces around anything else stay.
fn filled(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        text += before;
        let found = values.iter().find_map(|(name, value)| {
            let behind = from.strip_prefix('{')?.strip_prefix(name)?.strip_prefix('}')?;
            Some((value, behind))
        });
        match found {
            Some((value, behind)) => (text, rest) = (text + value, behind),
            None => (text, rest) = (text + "{", &from[1..]),
        }
    }
    text + rest
}

impl Fields {
    /// The example in a row, which may take `most` bytes of memory. Reports each column that holds something and is not
    /// used.
    pub(super) fn example(
        &self,
        row: Object<'_>,
        most: u64,
        report: &mut dyn FnMut(&str),
    ) -> Result<Example, RowProblem> {
        self.report_unread(row, report)?;
        let size = &mut RowSize::new(most);
        Ok(match self.format {
            Format::Messages => Example::Conversation(Conversation {
                messages: self.messages(row, size)?,
                context: self.context(row, size)?,
                given: 0,
            }),
            Format::Alpaca => {
                let input = self.optional_text(row, "input")?.unwrap_or_default();
                let (instruction, output) = (self.text(row, "instruction")?, self.text(row, "output")?);
                self.prompted(row, [instruction, input, output], size)?
            }
            Format::PromptCompletion => self.prompt_and_completion(row, size)?,
            Format::Preference => self.preference(row, size)?,
            Format::Feedback => self.feedback(row, size)?,
            Format::Text => Example::Text(self.text(row, "text")?.to_owned()),
            Format::Tokens => self.tokens(row)?,
        })
    }

    /// A prompt and what follows it, joined as they stand or as turns of the chat template, behind the row's system prompt
    /// and earlier turns.
    fn prompted(
        &self,
        row: Object<'_>,
        [given, input, completion]: [&str; 3],
        size: &mut RowSize,
    ) -> Result<Example, RowProblem> {
        let (prompt, completion) = (self.prompt.fill(self.format, given, input), completion.to_owned());
        if !self.prompt.chat {
            self.require_no_context(row)?;
            return Ok(Example::PromptCompletion { prompt, completion });
        }
        let mut messages = self.history(row, size)?;
        messages.extend([Message::new("user", prompt), Message::new("assistant", completion)]);
        self.add_system(row, &mut messages, size)?;
        Ok(Example::Conversation(Conversation { messages, context: self.context(row, size)?, given: 0 }))
    }

    /// What a row gives the chat template beside its messages.
    fn context(&self, row: Object<'_>, size: &mut RowSize) -> Result<Context, RowProblem> {
        context::context(|canonical| self.value(row, canonical), size)
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
}

fn integers<T>(
    value: Value<'_>,
    field: &str,
    expected: &str,
    convert: fn(i128) -> Option<T>,
) -> Result<Vec<T>, RowProblem> {
    let list = match value {
        Value::List(list) => list,
        Value::Text(text) if text.trim_start().starts_with('[') => {
            return integers(Value::from_json(&messages::parsed(text, field)?), field, expected, convert);
        }
        other => return Err(unexpected(field.to_owned(), "a list of integers", other)),
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
