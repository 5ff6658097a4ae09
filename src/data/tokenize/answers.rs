//! Answers that are compared or judged, as tokens: all that an answer adds to its prompt is supervised.

use super::tokenized::{Examples, Supervision, Tokenized};
use crate::data::example::{Answer, Message, RowProblem};
use crate::data::spec::TrainOn;
use crate::data::template::{ChatTemplate, Rendered, is_silent};

const NO_TEMPLATE: &str = "this row is a conversation, and the model's tokenizer has no chat template; name one in \
                           `data.chat_template`: a Jinja file, or \"chatml\"";

impl Examples {
    /// Prompt and answer as one document.
    pub(super) fn answer(&self, answer: &Answer) -> Result<Tokenized, RowProblem> {
        match answer {
            Answer::Text { prompt, answer } => {
                let tokenized = self.plain_text(format!("{prompt}{answer}"), prompt.len(), false)?;
                Ok(Tokenized { supervision: Supervision::Completion, ..tokenized })
            }
            Answer::Messages { messages, prompt } => {
                let template = self.template.as_ref().ok_or_else(|| RowProblem::whole(NO_TEMPLATE))?;
                let rendered = render(template, messages, *prompt)?;
                let tokenized = self.conversation(rendered, template, TrainOn::Completion)?;
                Ok(Tokenized { supervision: Supervision::Completion, ..tokenized })
            }
        }
    }
}

/// The conversation, with all behind the rendered prompt supervised. A template that renders the prompt otherwise when an
/// answer follows is followed turn by turn instead.
fn render(template: &ChatTemplate, messages: &[Message], prompt: usize) -> Result<Rendered, RowProblem> {
    let opening = template.render(&messages[..prompt].to_vec().into(), true).map_err(RowProblem::whole)?;
    let conversation = messages.to_vec().into();
    let text = template.render(&conversation, false).map_err(RowProblem::whole)?;
    if text.starts_with(&opening) {
        let spans = std::iter::once(opening.len()..text.len()).collect();
        return Ok(Rendered { spans, ..Rendered::unsupervised(text) });
    }
    let mut rendered = template.supervise(&conversation, TrainOn::Assistant).map_err(RowProblem::whole)?;
    let is_learned = |message: &Message| message.is_learned().is_none_or(|(_, learned)| learned);
    let has_span =
        |message: &&Message| message.role == "assistant" && is_learned(message) && !is_silent(message);
    let earlier = messages[..prompt].iter().filter(has_span).count();
    rendered.spans.drain(..earlier.min(rendered.spans.len()));
    Ok(rendered)
}
