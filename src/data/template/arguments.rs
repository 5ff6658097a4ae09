//! How the arguments of tool calls reach a template. Datasets have them as an object or, as OpenAI does, as JSON text. Most
//! templates need an object and would encode a text a second time; some need a text; some take both.

use minijinja::value::Value;
use serde_json::Value as Json;

use super::context::value;
use super::{ChatTemplate, TemplateError, python};
use crate::data::example::Context;
use crate::data::json;

/// The form of all arguments in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    /// As the dataset has them.
    Given,
    /// JSON text is parsed.
    Parsed,
    /// Objects are written as JSON text.
    Written,
}

/// A conversation in the form that a template can show.
pub(super) struct Shown {
    pub(super) arguments: Arguments,
    pub(super) messages: Vec<Value>,
    pub(super) text: String,
}

impl ChatTemplate {
    /// Renders the messages that `messages` makes, with arguments in the first form that the template shows as JSON: as
    /// given, else parsed, else written; if none is, as given. `calls` are the `tool_calls` of all messages.
    ///
    /// # Errors
    /// The template does not render the messages as given, nor in another form.
    pub(super) fn shown<'a>(
        &self,
        calls: impl Iterator<Item = &'a Json>,
        messages: impl Fn(Arguments) -> Vec<Value>,
        context: &Context,
        add_generation_prompt: bool,
    ) -> Result<Shown, TemplateError> {
        let all: Vec<&Json> = calls.flat_map(arguments_of).collect();
        let render = |arguments| -> Result<Shown, TemplateError> {
            let messages = messages(arguments);
            let text = self.render_values(messages.clone(), context, add_generation_prompt)?;
            Ok(Shown { arguments, messages, text })
        };
        let given = render(Arguments::Given);
        let fits = match &given {
            Ok(shown) => !all.iter().any(|arguments| is_misshown(arguments, &shown.text)),
            Err(TemplateError::Render { .. }) => all.is_empty(),
            Err(_) => true,
        };
        if fits {
            return given;
        }
        let others = [Arguments::Parsed, Arguments::Written].into_iter().filter_map(|form| render(form).ok());
        let mut others = others.filter(|shown| {
            let is_misshown = |arguments: &Json| match shown.arguments {
                Arguments::Written => is_misshown(&written(arguments), &shown.text),
                _ => is_misshown(&parsed(arguments), &shown.text),
            };
            !all.iter().any(|arguments| is_misshown(arguments))
        });
        others.next().map_or(given, Ok)
    }
}

/// Whether the text shows arguments, but not as JSON: a JSON text as a JSON string, or an object in Python's notation.
fn is_misshown(arguments: &Json, text: &str) -> bool {
    match arguments {
        Json::String(given) if parsed(arguments).is_object() => {
            python::json_of(&Value::from(given.as_str())).is_ok_and(|encoded| text.contains(&encoded))
        }
        Json::Object(members) if !members.is_empty() => {
            python::str_of(&value(arguments)).is_ok_and(|written| text.contains(&written))
        }
        _ => false,
    }
}

/// The arguments of every call in the `tool_calls` of a message.
fn arguments_of(tool_calls: &Json) -> impl Iterator<Item = &Json> {
    let calls = tool_calls.as_array().into_iter().flatten();
    calls.filter_map(|call| call.get("function").unwrap_or(call).get("arguments"))
}

/// The `tool_calls` of a message with their arguments in one form.
pub(super) fn with_arguments(tool_calls: &Json, form: Arguments) -> Json {
    let mut calls = tool_calls.clone();
    for call in calls.as_array_mut().into_iter().flatten() {
        let function = match call.get("function") {
            Some(_) => call.get_mut("function"),
            None => Some(call),
        };
        if let Some(arguments) = function.and_then(|function| function.get_mut("arguments")) {
            *arguments = match form {
                Arguments::Given => continue,
                Arguments::Parsed => parsed(arguments),
                Arguments::Written => written(arguments),
            };
        }
    }
    calls
}

/// Arguments as an object, where they are one or its JSON text.
fn parsed(arguments: &Json) -> Json {
    let object = arguments.as_str().and_then(|text| json::from_slice(text.as_bytes()).ok());
    object.filter(Json::is_object).unwrap_or_else(|| arguments.clone())
}

/// Arguments as JSON text, as Python's `json.dumps` writes it.
fn written(arguments: &Json) -> Json {
    let text = arguments.is_object().then(|| python::json_of(&value(arguments)).ok()).flatten();
    text.map_or_else(|| arguments.clone(), Json::String)
}
