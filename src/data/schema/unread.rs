//! What a row holds that is not read: counted by name, so that it can be named; and what shapes training in other tools,
//! so that it is an error to leave it out in silence.

use super::super::source::value::{Object, Value};
use super::super::spec::Format;
use super::{Fields, RowProblem, pointer};

/// Names that other tools give a meaning that training on text has no use for.
const MEDIA: [&str; 8] =
    ["image", "images", "video", "videos", "audio", "audios", "pixel_values", "audio_features"];
/// Names by which other tools weigh rows.
const WEIGHTS: [&str; 4] = ["weight", "weights", "sample_weight", "loss_weight"];
/// Names of what a chat template is given beside the messages.
const CONTEXT: [&str; 4] = ["tools", "functions", "documents", "chat_template_kwargs"];
/// Names of turns before the first one.
const BEFORE: [&str; 3] = ["system", "system_prompt", "history"];
/// Names of masks over token ids, by which other tools choose what is learned.
const MASKS: [&str; 6] =
    ["attention_mask", "completion_mask", "assistant_masks", "assistant_mask", "loss_mask", "prompt_mask"];

/// Why texts have neither context nor earlier turns.
const NO_CONVERSATION: &str = "only conversations are rendered by a chat template: `chat = true` in the `[[dataset]]` makes \
                               prompt and answer turns of one";

/// Why a column of that name cannot be left out in silence, where it cannot.
pub(super) fn meaning(format: Format, column: &str) -> Option<&'static str> {
    let is_in = |names: &[&str]| names.contains(&column);
    if is_in(&MEDIA) {
        return Some("tune trains on text alone");
    }
    if is_in(&WEIGHTS) {
        return Some("single rows cannot be weighted, only whole datasets (`weight` of a `[[dataset]]`)");
    }
    match format {
        Format::Messages => None,
        Format::Tokens => {
            is_in(&MASKS).then_some("`labels` choose the tokens to be learned, with -100 for the others")
        }
        Format::Alpaca | Format::PromptCompletion => {
            (is_in(&CONTEXT) || is_in(&BEFORE)).then_some(NO_CONVERSATION)
        }
        Format::Text => (is_in(&CONTEXT) || is_in(&BEFORE))
            .then_some("only rows of `format = \"messages\"` are rendered by a chat template"),
        Format::Preference | Format::Feedback => {
            is_in(&BEFORE).then_some("system prompts and earlier turns are messages of `prompt`")
        }
    }
}

/// Whether a value says nothing: null, empty, or what is so without it.
fn is_nothing(column: &str, value: Value<'_>) -> bool {
    let is_one = |value: Value<'_>| match value {
        Value::Integer(number) => number == 1,
        Value::Float(number) => number == 1.0,
        Value::Bool(truth) => truth,
        Value::Null => true,
        _ => false,
    };
    match value {
        Value::Null => true,
        Value::Text(text) => text.is_empty(),
        Value::List(list) if column == "attention_mask" => list.iter().all(is_one),
        Value::List(list) => list.is_empty(),
        Value::Object(object) => object.entries().all(|(_, value)| value.is_null()),
        value if WEIGHTS.contains(&column) => is_one(value),
        Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Number(_) | Value::Other(_) => false,
    }
}

fn not_used(column: &str, reason: &str) -> RowProblem {
    let problem = format!(
        "this column is not used: {reason}; remove it, or train without it by `ignore = [\"{column}\"]` in the \
         `[[dataset]]`"
    );
    RowProblem::at(pointer("", column), problem)
}

impl Fields {
    /// Whether a column is neither read nor named by the recipe's `ignore`. Columns without a name are padding.
    pub(in crate::data) fn is_unread(&self, column: &str) -> bool {
        !column.is_empty()
            && !self.columns().any(|read| read == column)
            && !self.ignore.iter().any(|ignored| ignored == column)
    }

    /// Reports the columns of a row that hold something and are not read.
    ///
    /// # Errors
    /// One of them shapes training elsewhere.
    pub(super) fn report_unread(
        &self,
        row: Object<'_>,
        report: &mut dyn FnMut(&str),
    ) -> Result<(), RowProblem> {
        let unread =
            row.entries().filter(|(column, value)| self.is_unread(column) && !is_nothing(column, *value));
        for (column, _) in unread {
            if let Some(reason) = meaning(self.format, column) {
                return Err(not_used(column, reason));
            }
            report(column);
        }
        Ok(())
    }

    /// Refuses what only a chat template can show, in a row of texts.
    pub(super) fn require_no_context(&self, row: Object<'_>) -> Result<(), RowProblem> {
        let context = self.fields.iter().filter(|field| CONTEXT.contains(&field.canonical));
        for column in context.flat_map(|field| &field.columns) {
            if !is_nothing(column, row.get(column)) {
                let reason = match self.format {
                    Format::PromptCompletion | Format::Alpaca => NO_CONVERSATION,
                    _ => "only conversations are rendered by a chat template, and this row holds texts",
                };
                return Err(not_used(column, reason));
            }
        }
        Ok(())
    }
}
