//! Prompts: a text or a conversation, encoded into tokens; a single one, or a file of them.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Error;
use super::inference::OpenedModel;
use crate::data::error::Error as DataError;
use crate::data::example::Context;
use crate::data::template::TemplateError;
use crate::data::{self, schema};
use crate::files::{self, Action};

/// A prompt.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "few prompts live at a time")]
pub enum Prompt {
    /// Text: a user message, or with `raw` the text to continue.
    Text(String),
    /// A conversation: JSON objects with `role` and `content`, and the context of the chat template.
    Messages(Vec<Value>, Context),
}

/// How prompts are formatted.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromptStyle<'a> {
    /// Verbatim, without a chat template.
    pub raw: bool,
    /// A system message before a text prompt.
    pub system: Option<&'a str>,
}

/// One line of a file of prompts.
#[derive(Clone, Debug)]
pub struct Record {
    /// The fields of the line, repeated in the answer's line.
    pub fields: Map<String, Value>,
    /// Its tokens.
    pub ids: Vec<u32>,
}

/// Keys that an answer's line adds to those of its prompt.
pub const ADDED: [&str; 4] = ["response", "finish", "prompt_tokens", "response_tokens"];

impl OpenedModel {
    /// The tokens of a prompt.
    ///
    /// # Errors
    /// There is no template, the template rejects the prompt, or the prompt leaves no room for an answer.
    pub fn encode(&self, prompt: &Prompt, style: PromptStyle<'_>) -> Result<Vec<u32>, Error> {
        let tokenizer = self.tokenizer()?;
        let text = match (prompt, style.raw) {
            (Prompt::Text(text), true) => {
                let mut ids = tokenizer.prefix().to_vec();
                ids.extend(tokenizer.encode(text).map_err(DataError::from)?.ids);
                return self.within_context(ids);
            }
            (Prompt::Messages(..), true) => {
                let message = "`messages` need a chat template, which `--raw` turns off";
                return Err(Error::Choice(message.into()));
            }
            (Prompt::Text(text), false) => {
                let system = style.system.map(|content| json!({"role": "system", "content": content}));
                let user = json!({"role": "user", "content": text});
                self.rendered(&system.into_iter().chain([user]).collect::<Vec<_>>(), &Context::default())?
            }
            (Prompt::Messages(messages, context), false) => self.rendered(messages, context)?,
        };
        self.within_context(tokenizer.encode(&text).map_err(DataError::from)?.ids)
    }

    fn rendered(&self, messages: &[Value], context: &Context) -> Result<String, Error> {
        let Some(template) = &self.template else {
            return Err(Error::Choice(format!(
                "{} has no chat template, so it cannot take a conversation; `tune generate --raw` continues a text",
                self.base.name()
            )));
        };
        let refused = |error: TemplateError| Error::Data(error.into());
        template.render_json(messages, context, true).map_err(refused)
    }

    fn within_context(&self, ids: Vec<u32>) -> Result<Vec<u32>, Error> {
        match (ids.len(), self.context()) {
            (0, _) => Err(crate::generate::Error::EmptyPrompt.into()),
            (prompt, context) if prompt >= context => {
                Err(crate::generate::Error::PromptTooLong { prompt, context }.into())
            }
            _ => Ok(ids),
        }
    }

    /// Reads and encodes a file of prompts: one JSON object per line with `prompt` or `messages`.
    ///
    /// # Errors
    /// The file cannot be read, or a line is not a valid prompt; the error names the first such line.
    pub fn read_prompts(&self, path: &Path, style: PromptStyle<'_>) -> Result<Vec<Record>, Error> {
        let text = std::fs::read_to_string(path).map_err(files::Error::io(Action::Read, path))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let record = |(number, line): (usize, &str)| {
            let place = format!("{}:{}", path.display(), number + 1);
            let wrong = |message: String| Error::Prompt { place: place.clone(), message };
            let fields = object(line).map_err(&wrong)?;
            let prompt = Prompt::of(&fields).map_err(&wrong)?;
            let ids = self.encode(&prompt, style).map_err(|error| wrong(error.to_string()))?;
            Ok(Record { fields, ids })
        };
        let records = lines.map(record).collect::<Result<Vec<_>, Error>>()?;
        match records.is_empty() {
            true => Err(Error::Prompt {
                place: path.display().to_string(),
                message: "the file has no prompts: each line must be an object with `prompt` or `messages`"
                    .into(),
            }),
            false => Ok(records),
        }
    }
}

fn object(line: &str) -> Result<Map<String, Value>, String> {
    match data::json::from_slice(line.as_bytes()) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("expected an object with `prompt` or `messages`".into()),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

impl Prompt {
    /// The prompt of a record.
    fn of(fields: &Map<String, Value>) -> Result<Self, String> {
        if let Some(key) = ADDED.iter().find(|key| fields.contains_key(**key)) {
            return Err(format!("the key `{key}` is reserved for the answer's line; rename it"));
        }
        match (fields.get("prompt"), fields.get("messages")) {
            (Some(Value::String(text)), None) => Ok(Self::Text(text.clone())),
            (None, Some(Value::Array(messages))) if !messages.is_empty() => {
                for (index, message) in messages.iter().enumerate() {
                    let role = message.get("role").and_then(Value::as_str);
                    let content = message.get("content");
                    if role.is_none()
                        || !content.is_some_and(|content| content.is_string() || content.is_array())
                    {
                        return Err(format!(
                            "/messages/{index}: expected an object with a text `role` and a `content`, found {message}"
                        ));
                    }
                }
                let context = schema::prompt_context(fields)
                    .map_err(|problem| format!("{}: {}", problem.field, problem.problem))?;
                Ok(Self::Messages(messages.clone(), context))
            }
            (Some(_), Some(_)) => Err("expected `prompt` or `messages`, found both".into()),
            (Some(other), None) => Err(format!("/prompt: expected a text, found {other}")),
            (None, Some(other)) => Err(format!("/messages: expected a list of messages, found {other}")),
            (None, None) => Err("expected `prompt` or `messages`, found neither".into()),
        }
    }
}
