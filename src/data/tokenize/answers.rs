//! Answers that are compared or judged, as tokens: all that an answer adds to its prompt is supervised.

use super::tokenized::{Examples, Supervision, Tokenized};
use crate::data::example::{Answer, Conversation, RowProblem};
use crate::data::spec::TrainOn;
use crate::data::template::{ChatTemplate, Rendered};

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
            Answer::Messages(conversation) => {
                let template = self.template()?;
                let rendered = render(template, conversation)?;
                let tokenized = self.conversation(rendered, template, TrainOn::Completion)?;
                Ok(Tokenized { supervision: Supervision::Completion, ..tokenized })
            }
        }
    }

    /// The chat template.
    pub(super) fn template(&self) -> Result<&ChatTemplate, RowProblem> {
        self.template.as_deref().ok_or_else(|| RowProblem::whole(NO_TEMPLATE))
    }
}

/// The conversation, with all behind the rendered prompt supervised. A template that renders the prompt otherwise when an
/// answer follows is followed turn by turn instead.
fn render(template: &ChatTemplate, conversation: &Conversation) -> Result<Rendered, RowProblem> {
    let Conversation { messages, context, given } = conversation;
    let prompt = Conversation { messages: messages[..*given].to_vec(), context: context.clone(), given: 0 };
    let opening = template.render(&prompt, true).map_err(RowProblem::whole)?;
    let text = template.render(conversation, false).map_err(RowProblem::whole)?;
    if text.starts_with(&opening) {
        let spans = std::iter::once(opening.len()..text.len()).collect();
        return Ok(Rendered { spans, ..Rendered::unsupervised(text) });
    }
    template.supervise(conversation, TrainOn::Assistant).map_err(RowProblem::whole)
}
