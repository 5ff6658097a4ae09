//! Chat templates: the tokenizer's own Jinja, rendered as transformers renders it. Knows conversations and text; which
//! part of the text is supervised is found in `spans`, and tokens belong to the tokenizer.
//!
//! The environment is transformers': `trim_blocks`, `lstrip_blocks`, lenient undefined values, Python's string
//! methods, `tojson` without HTML escapes, `raise_exception`, `strftime_now`, `{% break %}`, `{% continue %}`, and
//! `{% generation %}`, whose body is rendered as it is. Two things differ, on purpose:
//!
//! - the clock stands still (see [`CLOCK`]), so that training sees the same bytes on every day;
//! - a render ends with an error after five million instructions, or when it writes more than 128 MiB.
//!
//! A template comes with the model and is trusted as far as the model is: one that builds too much in memory ends the
//! process, which then names the template ([`being_rendered`]). It does so before training begins, since the survey
//! renders every row first.

mod arguments;
mod context;
mod environment;
mod method;
mod python;
mod source;
mod spans;
mod text;

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value as Json};

use crate::data::example::{Context, Conversation, Message};
use arguments::Shown;
pub(crate) use context::{OWN_VARIABLES, REASONING};
use environment::{FUEL, REFUSAL};
pub use source::CHATML;
pub use spans::{EndOfTurn, Rendered, Rules, SpanMethod};
use text::Text;

/// The time that `strftime_now` returns.
pub const CLOCK: &str = "2024-07-26 12:30";

/// The names of the templates in the engine.
const NAME: &str = "chat_template";
const TOOL_USE: &str = "tool_use";

thread_local! {
    static BEING_RENDERED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// The origin of the template that this thread is rendering. Allocates nothing, so that the handler of exhausted memory
/// can name the template.
pub fn being_rendered() -> Option<&'static str> {
    BEING_RENDERED.get()
}

/// A compiled chat template, and the special tokens that it may write.
///
/// Rendering takes `&self` and is deterministic: share it between threads.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// Leaked, for [`being_rendered`]; a process opens few templates.
    origin: &'static str,
    special_tokens: Vec<(String, String)>,
    template_kwargs: Map<String, Json>,
    /// There is a template of its own for conversations with tools.
    has_tool_use: bool,
    end_tokens: Vec<String>,
    asked_the_date: Arc<AtomicBool>,
    /// A render ran out of instructions: each would take seconds, so no other is begun.
    is_endless: Arc<AtomicBool>,
}

/// A template that cannot be used, or a conversation that it does not render.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The file that the recipe names cannot be read.
    #[error("cannot read the chat template {file}: {problem}")]
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
    #[error("the chat template of {origin} is not valid Jinja{}: {problem}", Line(*.line))]
    Syntax {
        /// Where the template comes from.
        origin: String,
        /// From 1; 0 where it is not known.
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
    #[error("the chat template of {origin} fails on this conversation{}: {problem}", Line(*.line))]
    Render {
        /// Where the template comes from.
        origin: String,
        /// From 1; 0 where it is not known.
        line: usize,
        /// What went wrong.
        problem: String,
    },
    /// A rule of the recipe refuses a turn.
    #[error("message {turn}: {problem}")]
    Turn {
        /// The message's index, from 0.
        turn: usize,
        /// The rule.
        problem: String,
    },
    /// No method finds the assistant's words in what the template wrote.
    #[error(
        "the chat template of {origin} does not show the content of message {turn} unchanged ({problem}), so the \
         supervised part of its text cannot be found; name another template in `data.chat_template`, or train on all \
         tokens with `train_on = \"all\"`"
    )]
    Spans {
        /// Where the template comes from.
        origin: String,
        /// The message's index, from 0.
        turn: usize,
        /// Why the content was not found.
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
        let origin: &'static str = origin.into().leak();
        let asked_the_date = Arc::new(AtomicBool::new(false));
        let environment = environment::transformers_environment(Arc::clone(&asked_the_date));
        let environment = add_template(environment, origin, NAME, &source)?;
        Ok(ChatTemplate {
            environment,
            source,
            origin,
            special_tokens: special_tokens.into_iter().collect(),
            template_kwargs: Map::new(),
            has_tool_use: false,
            end_tokens: end_tokens.into_iter().filter(|token| !token.is_empty()).collect(),
            asked_the_date,
            is_endless: Arc::new(AtomicBool::new(false)),
        })
    }

    /// The same template with further variables for every conversation.
    #[must_use]
    pub fn with_kwargs(self, template_kwargs: Map<String, Json>) -> Self {
        Self { template_kwargs, ..self }
    }

    /// The same template with another one in its place for conversations with tools.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn with_tool_use(mut self, source: &str) -> Result<Self, TemplateError> {
        self.environment = add_template(self.environment, self.origin, TOOL_USE, source)?;
        self.has_tool_use = true;
        Ok(self)
    }

    /// The Jinja source, byte for byte as it was read.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where the template comes from: a file, or `chatml (built-in)`.
    pub fn origin(&self) -> &str {
        self.origin
    }

    /// Renders a conversation; with `add_generation_prompt`, up to where the assistant begins to write.
    ///
    /// # Errors
    /// [`TemplateError::Refused`], [`TemplateError::Render`].
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        self.shown_conversation(conversation, add_generation_prompt).map(|shown| shown.text)
    }

    fn shown_conversation(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<Shown, TemplateError> {
        let Conversation { messages, context, .. } = conversation;
        let calls = messages.iter().filter_map(|message| message.extra.get("tool_calls"));
        let values = |form| messages.iter().map(|message| context::message(message, form)).collect();
        self.shown(calls, values, context, add_generation_prompt)
    }

    /// As [`render`](Self::render), for messages as JSON objects with whatever keys and contents they have.
    ///
    /// # Errors
    /// [`TemplateError::Refused`], [`TemplateError::Render`].
    pub fn render_json(
        &self,
        messages: &[Json],
        context: &Context,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let calls = messages.iter().filter_map(|message| message.get("tool_calls"));
        let values = |form| messages.iter().map(|message| context::json_message(message, form)).collect();
        self.shown(calls, values, context, add_generation_prompt).map(|shown| shown.text)
    }

    /// The token that ends an assistant's turn, as text, where the template writes one after a short exchange.
    pub fn end_of_turn(&self) -> Option<String> {
        let message = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
            extra: Map::new(),
        };
        let exchange = vec![message("user", "Hello."), message("assistant", spans::PROBE)];
        let text = self.render(&exchange.into(), false).ok()?;
        let (_, tail) = text.split_once(spans::PROBE)?;
        let closing = self.closing(tail);
        let token = tail[..closing.length].trim();
        (!token.is_empty()).then(|| token.to_owned())
    }

    /// Whether a render so far asked for today's date (and got [`CLOCK`]).
    pub fn asked_the_date(&self) -> bool {
        self.asked_the_date.load(Ordering::Relaxed)
    }

    fn render_values(
        &self,
        messages: Vec<Value>,
        context: &Context,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let variables = context::variables(
            &self.special_tokens,
            &self.template_kwargs,
            context,
            messages,
            add_generation_prompt,
        );
        let name = if self.has_tool_use && !context.tools.is_null() { TOOL_USE } else { NAME };
        in_engine(self.origin, || {
            if self.is_endless.load(Ordering::Relaxed) {
                let why = "not rendered, for the template ran out of instructions on another conversation";
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, why));
            }
            let mut text = Text::default();
            let rendered = self.environment.get_template(name)?.render_captured_to(variables, &mut text);
            if rendered.as_ref().is_err_and(|error| error.kind() == ErrorKind::OutOfFuel) {
                self.is_endless.store(true, Ordering::Relaxed);
            }
            rendered.map(|_| text.finish())
        })
        .map_err(|(line, problem)| {
            let origin = self.origin.to_owned();
            match problem.strip_prefix(REFUSAL) {
                Some(message) => TemplateError::Refused { origin, message: message.to_owned() },
                None => TemplateError::Render { origin, line, problem },
            }
        })
    }
}

fn add_template(
    mut environment: Environment<'static>,
    origin: &'static str,
    name: &'static str,
    source: &str,
) -> Result<Environment<'static>, TemplateError> {
    let prepared = environment::prepared(source);
    match in_engine(origin, || environment.add_template_owned(name, prepared)) {
        Ok(()) => Ok(environment),
        Err((line, problem)) => Err(TemplateError::Syntax { origin: origin.to_owned(), line, problem }),
    }
}

/// Runs the engine on a template. An error is the line (0: unknown) and what is wrong there.
///
/// minijinja panics in some corners: 65,535 arguments of a call, every second item of an empty list from its end.
fn in_engine<T>(
    origin: &'static str,
    work: impl FnOnce() -> Result<T, minijinja::Error>,
) -> Result<T, (usize, String)> {
    BEING_RENDERED.set(Some(origin));
    let result = catch_unwind(AssertUnwindSafe(work));
    BEING_RENDERED.set(None);
    match result {
        Ok(result) => result.map_err(|error| (error.line().unwrap_or(0), detail(&error))),
        Err(_) => Err((0, "the template engine panicked".to_owned())),
    }
}

fn detail(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => {
            format!("more than {FUEL} instructions; the template seems to loop without end")
        }
        (ErrorKind::WriteFailure, _) => text::too_long(),
        (_, Some(detail)) => shortened(detail),
        (kind, None) => kind.to_string(),
    }
}

/// Errors may quote the value that they fail on, however long it is.
fn shortened(message: &str) -> String {
    const LONGEST: usize = 2_000;
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

/// ` (line 3)`; nothing where the line is not known.
struct Line(usize);

impl fmt::Display for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(formatter, " (line {})", self.0) }
    }
}

#[cfg(test)]
mod tests;
