//! Which characters of a rendered conversation are supervised. Finds them by rendering again and comparing, never
//! by searching for marker tokens. Knows no token ids.
//!
//! For an assistant turn *i* of a conversation, with `F` the whole rendering:
//!
//! 1. **Prefix.** `P` = the messages before *i* rendered with the generation prompt, `Q` = the messages up to and
//!    with *i*. If `F` begins with `Q` and `Q` with `P`, then `Q − P` is what the model would write at inference:
//!    the content and the end of the turn.
//! 2. **Differential.** Some templates are not prefix-stable: Phi 3 ends a conversation with a token that is not
//!    there while it continues, Qwen 3 drops the thoughts of earlier turns, Mistral moves the system text to the last
//!    question. Then the content of turn *i* alone is replaced by two probes; what stays the same before (`A`) and
//!    behind (`B`) the probes frames the content in `F`.
//!
//! Either way the turn ends behind its *end token*, the first special token that follows the content: text that a
//! template writes after it (ChatML's newline, Phi 3's `<|endoftext|>`) is never generated, and not supervised. And
//! either way the characters found must be the message's content, white space aside; else it is an error.

use std::ops::Range;

use minijinja::value::Value;

use super::arguments::{Arguments, Shown};
use super::{ChatTemplate, TemplateError, context};
use crate::data::example::{Context, Conversation, Message};
use crate::data::spec::{OnHiddenThoughts, OnMarked, TrainOn};

/// How the supervised spans of a conversation were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpanMethod {
    /// Each prompt is a prefix of the whole: the span is the difference.
    Prefix,
    /// The template is not prefix-stable: the span is where the rendering changes with the content.
    Differential,
}

/// What ends an assistant's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndOfTurn {
    /// A special token of the tokenizer.
    Special,
    /// Text that is not a special token of this tokenizer (ChatML on a tokenizer without `<|im_end|>`).
    Text,
    /// Nothing but white space: the model cannot learn where to stop.
    Nothing,
}

/// Which turns of a conversation are supervised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The turns, before the other rules.
    pub train_on: TrainOn,
    /// The rule for a turn that its message marks as not to be learned.
    pub on_marked: OnMarked,
    /// The rule for a turn whose thoughts the template does not show.
    pub on_hidden_thoughts: OnHiddenThoughts,
}

impl From<TrainOn> for Rules {
    fn from(train_on: TrainOn) -> Self {
        Self { train_on, on_marked: OnMarked::Skip, on_hidden_thoughts: OnHiddenThoughts::Learn }
    }
}

impl Rules {
    /// Whether a turn is left out because of its mark.
    fn obeys_mark(self, message: &Message, turn: usize) -> Result<bool, TemplateError> {
        match (message.is_learned(), self.on_marked) {
            (Some((_, true)) | None, _) | (_, OnMarked::Learn) => Ok(false),
            (Some((_, false)), OnMarked::Skip) => Ok(true),
            (Some((key, false)), OnMarked::Error) => {
                let problem = format!("`{key}` marks it as not to be learned, and `on_marked` is \"error\"");
                Err(TemplateError::Turn { turn, problem })
            }
        }
    }

    /// Whether a turn without its thoughts is supervised.
    fn learns_without_thoughts(self, turn: usize) -> Result<bool, TemplateError> {
        match self.on_hidden_thoughts {
            OnHiddenThoughts::Learn => Ok(true),
            OnHiddenThoughts::Skip => Ok(false),
            OnHiddenThoughts::Error => {
                let problem =
                    "the chat template does not show its thoughts, and `on_hidden_thoughts` is \"error\"";
                Err(TemplateError::Turn { turn, problem: problem.to_owned() })
            }
        }
    }
}

/// A rendered conversation and its supervised spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The whole rendering, without a generation prompt.
    pub text: String,
    /// Supervised byte ranges of `text`, ascending, not overlapping, on character borders.
    pub spans: Vec<Range<usize>>,
    /// The least direct method that was needed; `None` if no span was looked for.
    pub method: Option<SpanMethod>,
    /// The weakest end among the supervised turns; `None` if no span was looked for.
    pub end_of_turn: Option<EndOfTurn>,
    /// The template does not show the thoughts of a supervised turn (`… </think>`, `reasoning_content`).
    pub dropped_thoughts: bool,
    /// A turn that `train_on` selects is left out because it is marked as not to be learned (`weight = 0`).
    pub marked: bool,
    /// A turn that `train_on` selects is left out because it has neither text nor thoughts nor tool calls.
    pub silent: bool,
}

impl Rendered {
    /// A text in which nothing is supervised.
    pub(crate) fn unsupervised(text: String) -> Rendered {
        Rendered {
            text,
            spans: Vec::new(),
            method: None,
            end_of_turn: None,
            dropped_thoughts: false,
            marked: false,
            silent: false,
        }
    }
}

/// Stands in for a message's content. Plain letters: no template trims, splits or escapes them.
pub(super) const PROBE: &str = "QzProbeAlphaQz";
/// What closes a thought in a message's content.
const END_OF_THOUGHT: &str = "</think>";

const OTHER_PROBE: &str = "QzAnotherProbeQz";

impl ChatTemplate {
    /// Renders a conversation and finds what `train_on` supervises in it:
    ///
    /// - `assistant`: every assistant turn;
    /// - `last-assistant`: the last one;
    /// - `completion`: the assistant turns after the last user turn (what tools return between them is not);
    /// - `all`: every character.
    ///
    /// Of a conversation that begins with a prompt, only turns behind the prompt, and `completion` is all of those.
    ///
    /// A turn that is marked as not to be learned is not supervised, nor is one without text, thoughts and tool calls: its
    /// end token would teach silence. Without a supervised turn, `spans` is empty.
    ///
    /// # Errors
    /// The template does not render the conversation, or neither method finds a supervised turn in the text
    /// ([`TemplateError::Spans`]).
    pub fn supervise(
        &self,
        conversation: &Conversation,
        rules: impl Into<Rules>,
    ) -> Result<Rendered, TemplateError> {
        let rules = rules.into();
        let Shown { arguments, messages: values, text } = self.shown_conversation(conversation, false)?;
        let Conversation { messages, context, given } = conversation;
        let turns = Turns { template: self, messages, context, values, arguments };
        let mut rendered = Rendered::unsupervised(text);
        let everything = rules.train_on == TrainOn::All;
        for index in selected_turns(messages, *given, rules.train_on) {
            let message = &messages[index];
            let is_marked = rules.obeys_mark(message, index)?;
            let is_silent = is_silent(message);
            rendered.marked |= is_marked;
            rendered.silent |= is_silent && !is_marked && !everything;
            // Where everything is supervised, the turns looked for are those that are not.
            let is_looked_for = if everything { is_marked } else { !is_marked && !is_silent };
            if !is_looked_for {
                continue;
            }
            if !everything {
                turns.require_tool_calls(&rendered.text, index)?;
            }
            if turns.leaves_out(&rendered.text, index) {
                continue;
            }
            let turn = turns.turn(&rendered.text, index)?;
            if rendered.spans.last().is_some_and(|span| span.end > turn.span.start) {
                return Err(self.spans_error(index, "its text overlaps the text of an earlier turn"));
            }
            let text = &rendered.text[turn.span.clone()];
            if !everything && (turn.dropped_thoughts || hides_reasoning(message, text)) {
                rendered.dropped_thoughts = true;
                if !rules.learns_without_thoughts(index)? {
                    continue;
                }
            }
            rendered.spans.push(turn.span);
            rendered.method = rendered.method.max(Some(turn.method));
            rendered.end_of_turn = rendered.end_of_turn.max(Some(turn.end));
        }
        if everything {
            rendered.spans = between(&rendered.spans, rendered.text.len());
            (rendered.method, rendered.end_of_turn) = (None, None);
        }
        Ok(rendered)
    }

    /// Where the turn ends in `tail`, the text that follows its content.
    pub(super) fn closing(&self, tail: &str) -> Closing {
        let first = self
            .end_tokens
            .iter()
            .filter_map(|token| tail.find(token.as_str()).map(|at| (at, token.len())))
            .min_by_key(|&(at, length)| (at, usize::MAX - length));
        match first {
            Some((at, length)) => Closing { length: at + length, end: EndOfTurn::Special },
            None if tail.trim().is_empty() => Closing { length: tail.len(), end: EndOfTurn::Nothing },
            None => Closing { length: tail.trim_end().len(), end: EndOfTurn::Text },
        }
    }

    fn spans_error(&self, turn: usize, problem: impl Into<String>) -> TemplateError {
        TemplateError::Spans { origin: self.origin.to_owned(), turn, problem: problem.into() }
    }
}

/// How much of a tail belongs to the turn, in bytes.
pub(super) struct Closing {
    pub(super) length: usize,
    end: EndOfTurn,
}

struct Turn {
    span: Range<usize>,
    method: SpanMethod,
    end: EndOfTurn,
    dropped_thoughts: bool,
}

/// The assistant turns that `train_on` selects; `given` messages are a prompt.
fn selected_turns(messages: &[Message], given: usize, train_on: TrainOn) -> Vec<usize> {
    let assistant = |index: &usize| messages[*index].role == "assistant";
    match train_on {
        TrainOn::All => (0..messages.len()).filter(assistant).collect(),
        TrainOn::LastAssistant => (given..messages.len()).rfind(assistant).into_iter().collect(),
        TrainOn::Assistant => (given..messages.len()).filter(assistant).collect(),
        TrainOn::Completion if given > 0 => (given..messages.len()).filter(assistant).collect(),
        TrainOn::Completion => {
            let prompt =
                messages.iter().rposition(|message| message.role == "user").map_or(0, |last| last + 1);
            (prompt..messages.len()).filter(assistant).collect()
        }
    }
}

/// Everything but `spans`, of a text of `length` bytes.
fn between(spans: &[Range<usize>], length: usize) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(spans.iter().map(|span| span.end));
    let ends = spans.iter().map(|span| span.start).chain([length]);
    starts.zip(ends).map(|(start, end)| start..end).filter(|span| !span.is_empty()).collect()
}

/// The reasoning that a message has beside its content.
fn reasoning(message: &Message) -> &str {
    let texts = context::REASONING.iter().filter_map(|name| message.extra.get(*name)?.as_str());
    texts.map(str::trim).find(|text| !text.is_empty()).unwrap_or_default()
}

/// Whether an answer has neither text nor thoughts nor tool calls.
fn is_silent(message: &Message) -> bool {
    // Most contents end this at their first character.
    let begins = message.content.trim_start();
    let is_blank = begins.is_empty()
        || begins.starts_with('<') && {
            begins.replace("<think>", "").replace(END_OF_THOUGHT, "").trim().is_empty()
        };
    is_blank && reasoning(message).is_empty() && !calls_tools(message)
}

/// Whether the text of a turn does not show the reasoning that the message has beside its content.
fn hides_reasoning(message: &Message, text: &str) -> bool {
    let reasoning = without_space(reasoning(message));
    !reasoning.is_empty() && !without_space(text).contains(&reasoning)
}

fn calls_tools(message: &Message) -> bool {
    let calls = message.extra.get("tool_calls").and_then(serde_json::Value::as_array);
    calls.is_some_and(|calls| !calls.is_empty())
}

struct Turns<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Message],
    context: &'a Context,
    values: Vec<Value>,
    arguments: Arguments,
}

impl Turns<'_> {
    /// Renders some of the messages, the one at `replaced.0` replaced.
    fn render(
        &self,
        range: Range<usize>,
        replaced: Option<(usize, &Message)>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mut values = self.values[range].to_vec();
        if let Some((index, message)) = replaced {
            values[index] = context::message(message, self.arguments);
        }
        self.template.render_values(values, self.context, add_generation_prompt)
    }

    /// A template without tool support would show a turn that calls tools as an empty answer.
    fn require_tool_calls(&self, whole: &str, index: usize) -> Result<(), TemplateError> {
        let mut message = self.messages[index].clone();
        if !calls_tools(&message) {
            return Ok(());
        }
        message.extra.shift_remove("tool_calls");
        match self.render(0..self.messages.len(), Some((index, &message)), false) {
            Ok(without) if without == whole => {
                Err(self.template.spans_error(index, "its tool calls are not shown"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the template leaves the turn out, as some do with empty turns.
    fn leaves_out(&self, whole: &str, index: usize) -> bool {
        self.messages[index].content.trim().is_empty() && {
            let mut values = self.values.clone();
            values.remove(index);
            self.template.render_values(values, self.context, false).is_ok_and(|without| without == whole)
        }
    }

    fn turn(&self, whole: &str, index: usize) -> Result<Turn, TemplateError> {
        let last = index + 1 == self.messages.len();
        // A template may refuse a conversation that is cut off here; this only excludes the first method.
        let prompt = if index == 0 { None } else { self.render(0..index, None, true).ok() };
        let through = if last { Some(whole.to_owned()) } else { self.render(0..index + 1, None, false).ok() };
        if let (Some(prompt), Some(through)) = (&prompt, &through)
            && whole.starts_with(through.as_str())
            && let Some(difference) = through.strip_prefix(prompt.as_str())
            && let Some((closing, end)) = self.close_difference(difference, index, prompt)
        {
            let span = prompt.len()..prompt.len() + closing;
            return Ok(Turn { span, method: SpanMethod::Prefix, end, dropped_thoughts: false });
        }
        let found = self.differential(whole, index, prompt.as_deref());
        if found.is_err()
            && calls_tools(&self.messages[index])
            && let Some(moved) = prompt.and_then(|prompt| self.moved(whole, index, &prompt))
        {
            return Ok(moved);
        }
        found
    }

    /// A turn whose calls stand in place of content, in a text that begins differently from its prompt (Mistral lists the
    /// tools at the last question): what it is behind its prompt, found where the name of its first call stands.
    fn moved(&self, whole: &str, index: usize, prompt: &str) -> Option<Turn> {
        let through = self.render(0..index + 1, None, false).ok()?;
        let difference = through.strip_prefix(prompt)?;
        let (closing, end) = self.close_difference(difference, index, prompt)?;
        let mut message = self.messages[index].clone();
        let call = message.extra.get_mut("tool_calls")?.get_mut(0)?;
        let call = if call.get("function").is_some() { call.get_mut("function")? } else { call };
        *call.get_mut("name")? = PROBE.into();
        let place = |messages: usize| {
            self.render(0..messages, Some((index, &message)), false).ok().and_then(|text| text.find(PROBE))
        };
        let inside = place(index + 1)?.checked_sub(prompt.len())?;
        let start = place(self.messages.len())?.checked_sub(inside)?;
        whole.get(start..)?.starts_with(&difference[..closing]).then_some(Turn {
            span: start..start + closing,
            method: SpanMethod::Differential,
            end,
            dropped_thoughts: false,
        })
    }

    /// Where the turn ends in the template's text for it; `None` if its content is not there unchanged.
    fn close_difference(&self, difference: &str, index: usize, prompt: &str) -> Option<(usize, EndOfTurn)> {
        let message = &self.messages[index];
        // A turn that also calls tools, or only does, shows more than its content.
        let content_only = message.extra.is_empty() || !message.content.trim().is_empty();
        if content_only
            && !calls_tools(message)
            && let Some(content_end) = content_end(difference, &message.content)
        {
            let closing = self.template.closing(&difference[content_end..]);
            return Some((content_end + closing.length, closing.end));
        }
        let (header, tail) = self.around_plain(index, index + 1)?;
        let (body, closing) = match difference.strip_suffix(tail.as_str()) {
            Some(body) => (body, self.template.closing(&tail)),
            // A call may have an end of its own (gpt-oss).
            None if calls_tools(message) => {
                let mut tokens = self.template.end_tokens.iter();
                let token = tokens.find(|token| difference.ends_with(token.as_str()))?;
                let body = &difference[..difference.len() - token.len()];
                (body, Closing { length: token.len(), end: EndOfTurn::Special })
            }
            None => return None,
        };
        // Without a generation prompt the turn's header would be supervised, if it has one.
        let shows_header = header != prompt && self.has_no_generation_prompt(index, prompt);
        if shows_header || !without_space(body).contains(&without_space(&message.content)) {
            return None;
        }
        Some((body.len() + closing.length, closing.end))
    }

    /// The text around the content of an assistant's turn that has nothing but its content, in the first `messages`.
    fn around_plain(&self, index: usize, messages: usize) -> Option<(String, String)> {
        let plain = Message {
            role: self.messages[index].role.clone(),
            content: PROBE.to_owned(),
            extra: serde_json::Map::new(),
        };
        let text = self.render(0..messages, Some((index, &plain)), false).ok()?;
        text.split_once(PROBE).map(|(before, behind)| (before.to_owned(), behind.to_owned()))
    }

    fn differential(&self, whole: &str, index: usize, prompt: Option<&str>) -> Result<Turn, TemplateError> {
        let error = |problem: &str| self.template.spans_error(index, problem);
        let message = &self.messages[index];
        let (thought, answer) = match message.content.rfind(END_OF_THOUGHT) {
            Some(at) => message.content.split_at(at + END_OF_THOUGHT.len()),
            None => ("", message.content.as_str()),
        };
        let (before, behind) = self.frame(index, thought)?;
        // Templates leave out white space around an empty answer.
        let behind = if answer.trim().is_empty() { behind.trim_start() } else { behind.as_str() };
        let body = whole
            .strip_prefix(before.as_str())
            .and_then(|rest| rest.strip_suffix(behind))
            .ok_or_else(|| error("the text around it depends on the content"))?;
        if !same_text(body, answer) {
            return Err(error("the content is altered"));
        }
        let mut said = before.len() + body.trim_end().len();
        if calls_tools(message) {
            let plain = self.around_plain(index, self.messages.len());
            match plain.and_then(|(_, behind)| whole.strip_suffix(behind.as_str())) {
                Some(until) if until.len() >= said => said = until.len(),
                _ => return Err(error("the end of its tool calls was not found")),
            }
        }
        let (closing, end) =
            self.close_in_place(&whole[said..], index).ok_or_else(|| error("its end was not found"))?;
        let header = if thought.is_empty() { before.clone() } else { self.frame(index, "")?.0 };
        let start = match self.start(whole, index, prompt, &header) {
            Some(start) => start.min(before.len()),
            None if header == before => before.len(),
            None => return Err(error("its beginning was not found")),
        };
        let thinking = thought.trim_end_matches(END_OF_THOUGHT).trim().trim_start_matches("<think>");
        let dropped_thoughts = !without_space(&whole[start..before.len()]).contains(&without_space(thinking));
        Ok(Turn { span: start..said + closing, method: SpanMethod::Differential, end, dropped_thoughts })
    }

    /// The text before and behind the content of turn `index` that follows `thought`, whatever the content is.
    fn frame(&self, index: usize, thought: &str) -> Result<(String, String), TemplateError> {
        let error = |problem: &str| self.template.spans_error(index, problem);
        let with = |probe: &str| {
            let separator = if thought.is_empty() { "" } else { "\n\n" };
            let content = format!("{thought}{separator}{probe}");
            let message = Message { content, ..self.messages[index].clone() };
            let text = self.render(0..self.messages.len(), Some((index, &message)), false)?;
            match text.split_once(probe) {
                Some((before, behind)) if !behind.contains(probe) => {
                    Ok((before.to_owned(), behind.to_owned()))
                }
                Some(_) => Err(error("the content is shown more than once")),
                None => Err(error("the content is not shown")),
            }
        };
        let frame = with(PROBE)?;
        if with(OTHER_PROBE)? != frame {
            return Err(error("the text around it depends on the content"));
        }
        Ok(frame)
    }

    /// Where the turn ends in `tail`, which begins behind its last word: behind the token that ends the turn when it is
    /// the last one, or behind another special token in its place (gpt-oss), but never in the next turn.
    fn close_in_place(&self, tail: &str, index: usize) -> Option<(usize, EndOfTurn)> {
        let Some((_, plain)) = self.around_plain(index, index + 1) else {
            let closing = self.template.closing(tail);
            return Some((closing.length, closing.end));
        };
        let expected = self.template.closing(&plain);
        let token = plain[..expected.length].trim();
        if token.is_empty() {
            return Some((0, EndOfTurn::Nothing));
        }
        let space = tail.len() - tail.trim_start().len();
        if tail[space..].starts_with(token) {
            return Some((space + token.len(), expected.end));
        }
        let closing = self.template.closing(tail);
        let stands_there = closing.end == EndOfTurn::Special
            && expected.end == EndOfTurn::Special
            && self.template.end_tokens.iter().any(|token| tail[..closing.length].trim_start() == token);
        stands_there.then_some((closing.length, closing.end))
    }

    /// Where the assistant's own text begins: at the end of the generation prompt. Text that the template writes between
    /// the prompt and the content (an empty thought) has to be generated by the model, so it is supervised.
    ///
    /// `header` is the text before the content when the content has no thought.
    fn start(&self, whole: &str, index: usize, prompt: Option<&str>, header: &str) -> Option<usize> {
        let prompt = prompt?;
        // Without a generation prompt, the assistant does not write its own header.
        if self.has_no_generation_prompt(index, prompt) {
            return None;
        }
        if whole.starts_with(prompt) {
            return Some(prompt.len());
        }
        let earlier = self.render(0..index, None, false).ok()?;
        let opening = prompt.strip_prefix(earlier.as_str())?;
        // Earlier turns may look different in the whole text than in the prompt; the opening of this turn does not.
        if let Some(at) = header.rfind(opening)
            && whole.starts_with(&header[..at + opening.len()])
        {
            return Some(at + opening.len());
        }
        let rest = whole.strip_prefix(earlier.as_str())?;
        let opened = match content_end(rest, opening) {
            // Equal but for white space.
            Some(end) => end + (rest[end..].len() - rest[end..].trim_start().len()),
            // The prompt continues differently from the whole text (it opens a thought): the common part is the prompt.
            None => shared(opening, rest),
        };
        Some(earlier.len() + opened)
    }

    /// Whether the template writes no generation prompt before turn `index`.
    fn has_no_generation_prompt(&self, index: usize, prompt: &str) -> bool {
        self.render(0..index, None, false).is_ok_and(|earlier| earlier == prompt)
    }
}

/// Length in bytes of the longest common prefix, on a character border.
fn shared(left: &str, right: &str) -> usize {
    left.chars()
        .zip(right.chars())
        .take_while(|(left, right)| left == right)
        .map(|(left, _)| left.len_utf8())
        .sum()
}

/// Where `content` ends in `text`, if `text` begins with it, white space aside.
fn content_end(text: &str, content: &str) -> Option<usize> {
    let mut characters = text.char_indices().filter(|(_, character)| !character.is_whitespace());
    let mut end = 0;
    for wanted in content.chars().filter(|character| !character.is_whitespace()) {
        let (at, found) = characters.next()?;
        if found != wanted {
            return None;
        }
        end = at + found.len_utf8();
    }
    Some(end)
}

fn same_text(left: &str, right: &str) -> bool {
    without_space(left) == without_space(right)
}

fn without_space(text: &str) -> String {
    text.chars().filter(|character| !character.is_whitespace()).collect()
}
