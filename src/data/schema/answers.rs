//! Records that hold a prompt and answers to learn, to compare or to judge, in the layouts that are in use:
//!
//! - TRL's: `prompt`, `chosen`, `rejected` as texts or as lists of messages; without `prompt` it is what both answers begin
//!   with. `prompt`, `completion`, `label` likewise.
//! - LLaMA-Factory's: `instruction` and `input`, or `conversations`, with `chosen` and `rejected` as texts or single
//!   messages; conversations with `kto_tag`.
//! - Anthropic's: `chosen` and `rejected` as whole dialogues in one text each.

use serde_json::Value as Json;

use super::columns::Fields;
use super::row_size::RowSize;
use super::unexpected;
use crate::data::example::{Answer, Conversation, Example, Message, RowProblem};
use crate::data::json;
use crate::data::source::value::{Object, Value, excerpt};

/// What precedes every answer of Anthropic's dialogues.
const ASSISTANT: &str = "\n\nAssistant:";

/// A text or messages.
enum Content {
    Text(String),
    Messages(Vec<Message>),
}

impl Fields {
    /// A prompt and its completion: two texts, or turns of a conversation.
    pub(super) fn prompt_and_completion(
        &self,
        row: Object<'_>,
        size: &mut RowSize,
    ) -> Result<Example, RowProblem> {
        let [prompt, completion] = ["prompt", "completion"].map(|side| {
            let content = self.content(row, side, size)?;
            content.ok_or_else(|| {
                let (value, field) = self.value(row, side);
                unexpected(field, "a text or a list of messages", value)
            })
        });
        let ((prompt, at), (completion, _)) = (prompt?, completion?);
        match (&prompt, &completion) {
            (Content::Text(prompt), Content::Text(completion)) => {
                return self.prompted(row, [prompt, "", completion], size);
            }
            _ if self.prompt.template.is_some() => {
                let problem = "`prompt` of the `[[dataset]]` is made of texts, and this row holds messages";
                return Err(RowProblem::at(at, problem));
            }
            _ => {}
        }
        let mut messages = as_prompt(prompt);
        let given = messages.len();
        messages.extend(as_answer(completion));
        Ok(Example::Conversation(Conversation { messages, context: self.context(row, size)?, given }))
    }

    /// A pair of answers.
    pub(super) fn preference(&self, row: Object<'_>, size: &mut RowSize) -> Result<Example, RowProblem> {
        let prompt = self.prompt(row, size)?;
        let [chosen, rejected] = ["chosen", "rejected"].map(|side| self.content(row, side, size));
        let (Some((chosen, at)), Some((rejected, other))) = (chosen?, rejected?) else {
            let missing = if self.value(row, "chosen").0.is_null() { "chosen" } else { "rejected" };
            let (value, field) = self.value(row, missing);
            return Err(unexpected(field, "a text or a list of messages", value));
        };
        let (mut chosen, mut rejected) = match (chosen, rejected) {
            (Content::Text(chosen), Content::Text(rejected)) => texts(prompt, chosen, rejected, &at)?,
            (Content::Messages(chosen), Content::Messages(rejected)) => {
                conversations(prompt, chosen, rejected, &at)?
            }
            _ => {
                let problem = "one answer is a text and the other a list of messages".to_owned();
                return Err(RowProblem { field: other, problem });
            }
        };
        for (answer, field) in [(&chosen, &at), (&rejected, &other)] {
            require_answer(answer, field)?;
        }
        if chosen == rejected {
            let problem = "the chosen and the rejected answer are equal".to_owned();
            return Err(RowProblem { field: other, problem });
        }
        self.add_context(row, [&mut chosen, &mut rejected], size)?;
        Ok(Example::Preference { chosen, rejected })
    }

    /// A single answer and whether it is wanted.
    pub(super) fn feedback(&self, row: Object<'_>, size: &mut RowSize) -> Result<Example, RowProblem> {
        let wanted = self.label(row)?;
        let prompt = self.prompt(row, size)?;
        let completion = self.content(row, "completion", size)?;
        let field = self.value(row, "completion").1;
        let mut answer = match (prompt, completion) {
            (Some(Content::Text(prompt)), Some((Content::Text(answer), _))) => {
                Answer::Text { prompt, answer }
            }
            (Some(Content::Messages(messages)), None) => {
                let prompt = messages.iter().rposition(|message| message.role != "assistant");
                conversation(messages, prompt.map_or(0, |last| last + 1))
            }
            (Some(prompt), Some((answer, _))) => following(&as_prompt(prompt), as_answer(answer)),
            (_, None) => {
                let (value, field) = self.value(row, "completion");
                return Err(unexpected(field, "a text or a list of messages", value));
            }
            (None, Some(_)) => {
                let (value, field) = self.value(row, "prompt");
                return Err(unexpected(field, "a text or a list of messages", value));
            }
        };
        require_answer(&answer, &field)?;
        self.add_context(row, [&mut answer], size)?;
        Ok(Example::Feedback { answer, wanted })
    }

    /// Gives conversations what the row has beside them.
    fn add_context<const N: usize>(
        &self,
        row: Object<'_>,
        answers: [&mut Answer; N],
        size: &mut RowSize,
    ) -> Result<(), RowProblem> {
        for answer in answers {
            match answer {
                Answer::Text { .. } => self.require_no_context(row)?,
                Answer::Messages(conversation) => conversation.context = self.context(row, size)?,
            }
        }
        Ok(())
    }

    /// The prompt by whichever field holds it; `None`: the answers hold it.
    fn prompt(&self, row: Object<'_>, size: &mut RowSize) -> Result<Option<Content>, RowProblem> {
        if let Some((content, _)) = self.content(row, "prompt", size)? {
            return Ok(Some(content));
        }
        let Some(instruction) = self.optional_text(row, "instruction")? else { return Ok(None) };
        let input = self.optional_text(row, "input")?.unwrap_or_default();
        let text = if input.is_empty() { instruction.to_owned() } else { format!("{instruction}\n{input}") };
        // LLaMA-Factory puts this to the model as what a user says.
        Ok(Some(Content::Messages(vec![Message::new("user", text)])))
    }

    fn content(
        &self,
        row: Object<'_>,
        canonical: &str,
        size: &mut RowSize,
    ) -> Result<Option<(Content, String)>, RowProblem> {
        let (value, field) = self.value(row, canonical);
        let content = match value {
            Value::Null => return Ok(None),
            Value::Text(text) => match messages_of(text) {
                Some(list) => Content::Messages(self.message_list(Value::from_json(&list), &field, size)?),
                None => Content::Text(size.text(text, &field)?),
            },
            Value::Object(_) => Content::Messages(vec![self.message(value, &field, size)?]),
            list @ Value::List(_) => match self.message_list(list, &field, size) {
                Ok(messages) => Content::Messages(messages),
                Err(fault) if fault.field == field => {
                    return Err(unexpected(field, "a text or a list of messages", list));
                }
                Err(fault) => return Err(fault),
            },
            other => return Err(unexpected(field, "a text or a list of messages", other)),
        };
        Ok(Some((content, field)))
    }

    fn label(&self, row: Object<'_>) -> Result<bool, RowProblem> {
        let (value, field) = self.value(row, "label");
        match value {
            Value::Bool(label) => Ok(label),
            Value::Integer(0) => Ok(false),
            Value::Integer(1) => Ok(true),
            // A table of texts has no truth values.
            Value::Text(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => {
                    let problem = format!("expected true or false, found {}", excerpt(text));
                    Err(RowProblem { field, problem })
                }
            },
            other => Err(unexpected(field, "true or false", other)),
        }
    }
}

/// The list of messages that a text holds as JSON; `None`: it is a text.
fn messages_of(text: &str) -> Option<Json> {
    let inside = text.trim_start().strip_prefix('[')?;
    if !inside.trim_start().starts_with('{') {
        return None;
    }
    let list = json::from_slice(text.as_bytes()).ok()?;
    let has_role = |message: &Json| message.get("role").or(message.get("from")).is_some_and(Json::is_string);
    let messages = list.as_array().filter(|list| !list.is_empty())?;
    messages.iter().all(has_role).then_some(list)
}

fn as_prompt(content: Content) -> Vec<Message> {
    match content {
        Content::Text(text) => vec![Message::new("user", text)],
        Content::Messages(messages) => messages,
    }
}

fn as_answer(content: Content) -> Vec<Message> {
    match content {
        Content::Text(text) => vec![Message::new("assistant", text)],
        Content::Messages(messages) => messages,
    }
}

fn texts(
    prompt: Option<Content>,
    chosen: String,
    rejected: String,
    field: &str,
) -> Result<(Answer, Answer), RowProblem> {
    match prompt {
        Some(Content::Text(prompt)) => Ok((
            Answer::Text { prompt: prompt.clone(), answer: chosen },
            Answer::Text { prompt, answer: rejected },
        )),
        Some(prompt @ Content::Messages(_)) => {
            let prompt = as_prompt(prompt);
            let answers = [chosen, rejected].map(|text| vec![Message::new("assistant", text)]);
            let [chosen, rejected] = answers;
            Ok((following(&prompt, chosen), following(&prompt, rejected)))
        }
        None => {
            let at = common_prompt(&chosen, &rejected);
            if at == 0 {
                let problem = "there is no `prompt`, and the two answers do not begin alike".to_owned();
                return Err(RowProblem { field: field.to_owned(), problem });
            }
            let split =
                |text: &str| Answer::Text { prompt: text[..at].to_owned(), answer: text[at..].to_owned() };
            Ok((split(&chosen), split(&rejected)))
        }
    }
}

/// Length of the prompt that two dialogues begin with: up to the assistant's last turn where that is marked, else all that
/// they have in common, a space before the answers left to them.
fn common_prompt(chosen: &str, rejected: &str) -> usize {
    let common = chosen.char_indices().zip(rejected.chars()).find(|((_, left), right)| left != right);
    let common = common.map_or(chosen.len().min(rejected.len()), |((at, _), _)| at);
    let shared = &chosen[..common];
    match shared.rfind(ASSISTANT) {
        Some(at) => at + ASSISTANT.len(),
        None => shared.trim_end_matches(' ').len(),
    }
}

fn conversations(
    prompt: Option<Content>,
    chosen: Vec<Message>,
    rejected: Vec<Message>,
    field: &str,
) -> Result<(Answer, Answer), RowProblem> {
    let prompt = match prompt {
        // The answers repeat a prompt that they are whole with.
        Some(prompt) => {
            let prompt = as_prompt(prompt);
            let repeats = |answer: &[Message]| answer.starts_with(&prompt);
            match (repeats(&chosen), repeats(&rejected)) {
                (true, true) => prompt.len(),
                (false, false) => return Ok((following(&prompt, chosen), following(&prompt, rejected))),
                _ => {
                    let problem = "one answer repeats the prompt, the other does not".to_owned();
                    return Err(RowProblem { field: field.to_owned(), problem });
                }
            }
        }
        None => chosen.iter().zip(&rejected).take_while(|(left, right)| left == right).count(),
    };
    // An answer begins with a turn of the assistant's.
    let prompt = (0..=prompt).rev().find(|at| {
        let begins =
            |messages: &[Message]| messages.get(*at).is_some_and(|message| message.role == "assistant");
        begins(&chosen) && begins(&rejected)
    });
    match prompt {
        Some(prompt) if prompt > 0 => Ok((conversation(chosen, prompt), conversation(rejected, prompt))),
        _ => {
            let problem =
                "the two conversations have no prompt in common that an assistant answers".to_owned();
            Err(RowProblem { field: field.to_owned(), problem })
        }
    }
}

fn following(prompt: &[Message], answer: Vec<Message>) -> Answer {
    conversation(prompt.iter().cloned().chain(answer).collect(), prompt.len())
}

fn conversation(messages: Vec<Message>, given: usize) -> Answer {
    Answer::Messages(Conversation { messages, given, ..Conversation::default() })
}

fn require_answer(answer: &Answer, field: &str) -> Result<(), RowProblem> {
    let (is_empty, has_prompt) = match answer {
        Answer::Text { answer, .. } => (answer.trim().is_empty(), true),
        Answer::Messages(Conversation { messages, given, .. }) => {
            let said = |message: &Message| !message.content.trim().is_empty() || !message.extra.is_empty();
            (!messages[*given..].iter().any(said), *given > 0)
        }
    };
    let problem = match (is_empty, has_prompt) {
        (true, _) => "the answer is empty",
        (_, false) => "there is no prompt before the answer",
        _ => return Ok(()),
    };
    Err(RowProblem { field: field.to_owned(), problem: problem.to_owned() })
}
