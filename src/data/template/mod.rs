//! Chat templates: the tokenizer's own Jinja, rendered as transformers renders it. Knows conversations and text;
//! which part of the text is supervised is `spans`' business, and tokens are the tokenizer's.
//!
//! The environment is transformers': `trim_blocks`, `lstrip_blocks`, lenient undefined values, Python's string
//! methods, `tojson` without HTML escapes, `raise_exception`, `strftime_now`, `{% break %}`, `{% continue %}`, and
//! `{% generation %}`, whose body is rendered as it stands. Two things differ, on purpose:
//!
//! - the clock stands still (see [`CLOCK`]), so that training sees the same bytes on every day;
//! - a render may take no more than five million instructions, no more memory than `budget` lets it have and no more time
//!   than `effort` does, and all renders together no more time than `allowance` does, whatever the template does: it
//!   comes with a model, from strangers. Nothing of the engine is offered to a template that does not ask them: filters,
//!   tests and functions are named one by one.

mod allowance;
mod budget;
mod constants;
mod effort;
mod filters;
mod method;
mod namespace;
mod operators;
mod program;
mod python;
mod source;
mod spans;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use regex::Regex;

use crate::data::example::Message;
use allowance::Allowance;
use program::Program;
pub use source::CHATML;
pub use spans::{EndOfTurn, Rendered, SpanMethod};

/// The moment that `strftime_now` speaks of.
pub const CLOCK: &str = "2024-07-26 12:30";

/// Instructions that one render may take. A conversation of a thousand turns takes some hundred thousand.
const FUEL: u64 = 5_000_000;

/// A compiled chat template, and the special tokens that it may write.
///
/// Rendering takes `&self` and is deterministic: share it between threads.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    program: Program,
    source: String,
    origin: String,
    special_tokens: Vec<(String, String)>,
    end_tokens: Vec<String>,
    asked_the_date: Arc<AtomicBool>,
    allowance: Allowance,
}

/// A template that cannot be used, or a conversation that it will not render.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The file that the recipe names cannot be read.
    #[error("chat template {file}: cannot be read: {problem}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        problem: String,
    },
    /// `chat_template` in tokenizer_config.json is neither a string nor a list with a `default`.
    #[error("{origin}: `chat_template`: {problem}")]
    Declaration {
        /// The file.
        origin: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// Not valid Jinja.
    #[error("chat template of {origin}, line {line}: {problem}")]
    Syntax {
        /// Where the template comes from.
        origin: String,
        /// From 1.
        line: usize,
        /// What the parser said.
        problem: String,
    },
    /// The template called `raise_exception`.
    #[error("the chat template of {origin} refuses this conversation: {message}")]
    Refused {
        /// Where the template comes from.
        origin: String,
        /// In the template's words.
        message: String,
    },
    /// The template failed on this conversation.
    #[error("the chat template of {origin} fails on this conversation (line {line}): {problem}")]
    Render {
        /// Where the template comes from.
        origin: String,
        /// From 1; 0 where it is not known.
        line: usize,
        /// What went wrong.
        problem: String,
    },
    /// The renders so far took more than any honest template needs for all of them; there will be no others.
    #[error(
        "the chat template of {origin} takes far more time than the conversations that it is given account for; name \
         another template (`data.chat_template`)"
    )]
    Spent {
        /// Where the template comes from.
        origin: String,
    },
    /// No method finds the assistant's words in what the template wrote.
    #[error(
        "the chat template of {origin} does not show the content of message {turn} as it stands ({problem}), so what \
         is to be learned cannot be told from its frame; name a template that does (`data.chat_template`), or train \
         on all tokens (`train_on = \"all\"`)"
    )]
    Spans {
        /// Where the template comes from.
        origin: String,
        /// The message's index, from 0.
        turn: usize,
        /// What was tried and what came of it.
        problem: String,
    },
}

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// `origin` is named in errors. `special_tokens` are the template's variables (`bos_token` → `<s>`, …);
    /// `end_tokens` are the literal texts of the tokenizer's special tokens, one of which ends a turn.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(
        source: String,
        origin: impl Into<String>,
        special_tokens: impl IntoIterator<Item = (String, String)>,
        end_tokens: impl IntoIterator<Item = String>,
    ) -> Result<ChatTemplate, TemplateError> {
        let origin = origin.into();
        let asked_the_date = Arc::new(AtomicBool::new(false));
        let environment = transformers_environment(Arc::clone(&asked_the_date));
        let syntax = |line, problem| TemplateError::Syntax { origin: origin.clone(), line, problem };
        let program = match catch_unwind(|| Program::compile(prepared(&source))) {
            Ok(compiled) => compiled.map_err(|fault| syntax(fault.line, detail(&fault.error)))?,
            // The compiler has limits that it asserts, such as 65,535 arguments.
            Err(_) => return Err(syntax(0, "the template engine broke down on it".to_owned())),
        };
        Ok(ChatTemplate {
            environment,
            program,
            source,
            origin,
            special_tokens: special_tokens.into_iter().collect(),
            end_tokens: end_tokens.into_iter().filter(|token| !token.is_empty()).collect(),
            asked_the_date,
            allowance: Allowance::new(),
        })
    }

    /// The Jinja source, byte for byte as it was read.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where the template comes from: a file, or `chatml (built-in)`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Renders a conversation; with `add_generation_prompt`, up to where the assistant begins to write.
    ///
    /// # Errors
    /// [`TemplateError::Refused`], [`TemplateError::Render`].
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        self.render_values(values(messages), add_generation_prompt)
    }

    /// As [`render`](Self::render), for messages as JSON objects with whatever keys and contents they have.
    ///
    /// # Errors
    /// [`TemplateError::Refused`], [`TemplateError::Render`].
    pub fn render_json(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let message = |message: &serde_json::Value| match message.as_object() {
            Some(keys) => {
                with_reasoning(keys.iter().map(|(name, value)| (name.as_str(), value.into())), keys)
            }
            None => Value::from_serialize(message),
        };
        self.render_values(messages.iter().map(message).collect(), add_generation_prompt)
    }

    /// The token that ends an assistant's turn, as text, where the template writes one after a short exchange.
    pub fn end_of_turn(&self) -> Option<String> {
        let message = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
            extra: serde_json::Map::new(),
        };
        let exchange = [message("user", "Hello."), message("assistant", spans::PROBE)];
        let text = self.render(&exchange, false).ok()?;
        let (_, tail) = text.split_once(spans::PROBE)?;
        let closing = self.closing(tail);
        let token = tail[..closing.length].trim();
        (!token.is_empty()).then(|| token.to_owned())
    }

    /// Some render so far asked for today's date, and got [`CLOCK`].
    pub fn asked_the_date(&self) -> bool {
        self.asked_the_date.load(Ordering::Relaxed)
    }

    /// [`TemplateError::Spent`], once all that the renders of this template may take together was taken.
    ///
    /// # Errors
    /// That one.
    pub fn require_unspent(&self) -> Result<(), TemplateError> {
        match self.allowance.is_spent() {
            true => Err(TemplateError::Spent { origin: self.origin.clone() }),
            false => Ok(()),
        }
    }

    fn render_values(
        &self,
        messages: Vec<Value>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        self.require_unspent()?;
        self.allowance.begin(effort::size(&messages));
        let variables = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.clone(), Value::from(token.as_str())))
            .chain([
                ("messages".to_owned(), Value::from(messages)),
                ("tools".to_owned(), Value::from(())),
                ("documents".to_owned(), Value::from(())),
                ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
            ])
            .collect::<Value>();
        let rendered = catch_unwind(AssertUnwindSafe(|| self.program.render(&self.environment, variables)));
        let written = rendered.as_ref().map_or(0, |text| text.as_ref().map_or(0, String::len));
        self.allowance.end(effort::taken(), written);
        match rendered {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(self.render_error(&error)),
            // minijinja has corners that panic, such as the reverse of an empty list (`[][::-1]`).
            Err(_) => Err(TemplateError::Render {
                origin: self.origin.clone(),
                line: 0,
                problem: "the template engine broke down on it".to_owned(),
            }),
        }
    }

    fn render_error(&self, error: &minijinja::Error) -> TemplateError {
        let problem = detail(error);
        let origin = self.origin.clone();
        match problem.strip_prefix(REFUSAL) {
            Some(message) => TemplateError::Refused { origin, message: message.to_owned() },
            None => TemplateError::Render { origin, line: error.line().unwrap_or(0), problem },
        }
    }
}

/// Marks the errors that `raise_exception` makes, among minijinja's own.
const REFUSAL: &str = "\u{1}raise_exception\u{1}";

fn transformers_environment(asked_the_date: Arc<AtomicBool>) -> Environment<'static> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.set_unknown_method_callback(method::call);
    environment.set_formatter(|output, _, value| {
        let mut write = |text: &str| {
            budget::charge("writing text", text.len() as u64)?;
            output.write_str(text).map_err(minijinja::Error::from)
        };
        match value.as_str() {
            Some(text) => write(text),
            None => write(&python::str_of(value)?),
        }
    });
    filters::offer(&mut environment);
    operators::add_to(&mut environment);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", |value: &Value| python::str_of(value));
    // Python cannot iterate over None; minijinja can.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, minijinja::Error> {
        Err(python::invalid(format!("{REFUSAL}{}", filters::message(message)?)))
    });
    environment.add_function("strftime_now", move |format: &str| {
        asked_the_date.store(true, Ordering::Relaxed);
        python::strftime_now(format)
    });
    environment
}

/// The source as minijinja has to see it to read it as Jinja2 does.
///
/// Jinja2 takes every line ending for `\n`. `{% generation %}` marks what the assistant wrote, for those who mask by
/// it; we find that by other means (`spans`), so the tag becomes a condition that always holds, its white-space control
/// kept.
fn prepared(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let Ok(tag) = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") else { return source };
    tag.replace_all(&source, |found: &regex::Captures<'_>| {
        let statement = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {statement} {}%}}", &found[1], &found[3])
    })
    .into_owned()
}

/// The messages as a template sees them.
fn values(messages: &[Message]) -> Vec<Value> {
    messages.iter().map(value).collect()
}

fn value(message: &Message) -> Value {
    let said = [("role", Key::Text(&message.role)), ("content", Key::Text(&message.content))];
    let extra = message.extra.iter().map(|(name, value)| (name.as_str(), value.into()));
    with_reasoning(said.into_iter().chain(extra), &message.extra)
}

/// What a key of a message holds.
enum Key<'a> {
    Text(&'a str),
    Json(&'a serde_json::Value),
}

impl<'a> From<&'a serde_json::Value> for Key<'a> {
    fn from(value: &'a serde_json::Value) -> Self {
        Key::Json(value)
    }
}

/// A message from its keys. Reasoning goes by three names in the wild; as transformers does, a message that has it
/// under one of them gets it under the two that templates read.
fn with_reasoning<'a>(
    keys: impl Iterator<Item = (&'a str, Key<'a>)>,
    named: &serde_json::Map<String, serde_json::Value>,
) -> Value {
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|name| named.get(*name).filter(|value| !value.is_null()))
        .map(Value::from_serialize);
    let keys = keys.map(|(name, key)| {
        let value = match key {
            Key::Text(text) => Value::from(text),
            Key::Json(value) => Value::from_serialize(value),
        };
        (name.to_owned(), value)
    });
    let first = reasoning.clone().map(|reasoning| ("thinking".to_owned(), reasoning));
    let last = reasoning.map(|reasoning| ("reasoning_content".to_owned(), reasoning));
    first.into_iter().chain(keys).chain(last).collect()
}

fn detail(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("more than {FUEL} instructions: it seems to loop without end"),
        (_, Some(detail)) => filters::shortened(detail),
        (kind, None) => kind.to_string(),
    }
}

#[cfg(test)]
mod tests;
