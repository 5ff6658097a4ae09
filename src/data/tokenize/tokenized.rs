//! From an example to token ids and labels: template, BOS and EOS, supervised tokens by character offset. Knows
//! neither files nor the sequence length.
//!
//! Tokens added to the text:
//! - `messages`, answers that are messages: none. The template writes everything, as in transformers'
//!   `apply_chat_template(tokenize=True)`.
//! - `prompt-completion`, `text`, answers that are texts: in front, what the tokenizer adds by itself (a BOS, or
//!   nothing); at the end, a supervised EOS.
//! - `tokens`: none.

use std::ops::Range;
use std::sync::Arc;

use super::{Encoding, Tokenizer};
use crate::data::example::{Example, RowProblem};
use crate::data::sequence::Side;
use crate::data::spec::TrainOn;
use crate::data::template::{ChatTemplate, Rendered, Rules, SpanMethod};

/// The label of a token that is not supervised.
pub const IGNORED: i32 = -100;

/// How the supervised tokens of an example were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervision {
    /// Spans of a rendered conversation.
    Template(SpanMethod),
    /// Everything after the prompt.
    Completion,
    /// Labels that the record itself gives.
    Labels,
    /// Every token.
    Everything,
}

/// An example as tokens, before it is fitted to a sequence length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// One label per token, at the token's own position: the id to be learned, or [`IGNORED`].
    pub labels: Vec<i32>,
    /// The text, and the bytes of each token in it; `None` for `tokens`.
    pub text: Option<TokenizedText>,
    /// How the supervised tokens were found.
    pub supervision: Supervision,
    /// How the template showed the conversation; `None` for other formats.
    pub rendered: Option<TemplateTraits>,
    /// What it is to the other documents of its example.
    pub side: Side,
}

/// The text behind the tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedText {
    /// The whole text.
    pub text: String,
    /// One byte range per token. Tokens that were added to the text have an empty range at its start or end.
    pub offsets: Vec<Range<usize>>,
    /// Whether the tokens are known to spell the text byte for byte.
    pub is_exact: bool,
}

/// What the survey reports about templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemplateTraits {
    /// See [`Rendered::end_of_turn`].
    pub end_of_turn: Option<crate::data::template::EndOfTurn>,
    /// See [`Rendered::dropped_thoughts`].
    pub dropped_thoughts: bool,
    /// See [`Rendered::marked`].
    pub marked: bool,
    /// See [`Rendered::silent`].
    pub silent: bool,
    /// The tokenizer puts a BOS before plain text, and the template writes none.
    pub lacks_bos: bool,
}

/// Turns examples into tokens. Shared between threads.
#[derive(Clone, Debug)]
pub struct Examples {
    /// Needed by all formats but `tokens`.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Needed by `messages`.
    pub template: Option<Arc<ChatTemplate>>,
    /// Ids must be below this: the rows of the model's embedding.
    pub vocabulary_size: Option<usize>,
}

impl Examples {
    /// Tokenizes the documents of one example and labels their supervised tokens: one document, or both answers of a pair,
    /// the chosen one first.
    ///
    /// # Errors
    /// A conversation that the template refuses or alters, a repeated BOS, a label without its token, an id that the
    /// vocabulary does not have, a missing tokenizer, template or EOS.
    pub fn tokenize(&self, example: &Example, rules: impl Into<Rules>) -> Result<Vec<Tokenized>, RowProblem> {
        let rules = rules.into();
        let train_on = rules.train_on;
        let documents = match example {
            Example::Conversation(conversation) => {
                let template = self.template()?;
                let rendered = template.supervise(conversation, rules).map_err(RowProblem::whole)?;
                vec![self.conversation(rendered, template, train_on)?]
            }
            Example::PromptCompletion { prompt, completion } => {
                let everything = train_on == TrainOn::All;
                vec![self.plain_text(format!("{prompt}{completion}"), prompt.len(), everything)?]
            }
            Example::Text(text) => vec![self.plain_text(text.clone(), 0, true)?],
            Example::Tokens { input_ids, labels } => vec![given_tokens(input_ids, labels.as_deref())?],
            Example::Preference { chosen, rejected } => {
                let [chosen, rejected] = [(chosen, Side::Chosen), (rejected, Side::Rejected)]
                    .map(|(answer, side)| Ok::<_, RowProblem>(Tokenized { side, ..self.answer(answer)? }));
                let (chosen, rejected) = (chosen?, rejected?);
                if chosen.input_ids == rejected.input_ids {
                    return Err(RowProblem::whole(
                        "the chosen and the rejected answer become the same tokens",
                    ));
                }
                vec![chosen, rejected]
            }
            Example::Feedback { answer, wanted } => {
                let side = if *wanted { Side::Wanted } else { Side::Unwanted };
                vec![Tokenized { side, ..self.answer(answer)? }]
            }
        };
        documents.iter().try_for_each(|document| self.require_in_vocabulary(document))?;
        Ok(documents)
    }

    fn require_in_vocabulary(&self, tokenized: &Tokenized) -> Result<(), RowProblem> {
        if let Some(size) = self.vocabulary_size {
            let outside = |id: u32| id as usize >= size;
            if let Some(at) = tokenized.input_ids.iter().position(|id| outside(*id)) {
                return Err(RowProblem::at(
                    format!("/input_ids/{at}"),
                    format!(
                        "id {} is outside the model's vocabulary of {size}{}",
                        tokenized.input_ids[at],
                        self.spelled(tokenized.input_ids[at])
                    ),
                ));
            }
            if let Some(at) = tokenized.labels.iter().position(|label| *label >= 0 && outside(*label as u32))
            {
                return Err(RowProblem::at(
                    format!("/labels/{at}"),
                    format!("label {} is outside the model's vocabulary of {size}", tokenized.labels[at]),
                ));
            }
        }
        Ok(())
    }

    /// Whether the supervised tokens decode to the supervised text, white space aside. False where the tokenizer does
    /// not know a character or normalizes it. True for `tokens`.
    pub fn round_trips(&self, tokenized: &Tokenized) -> bool {
        let (Some(tokenizer), Some(text)) = (&self.tokenizer, &tokenized.text) else { return true };
        text.is_exact
            || supervised_runs(&tokenized.labels).all(|run| {
                // Tokens that were added to the text have no bytes in it.
                let tokens: Vec<usize> = run.filter(|token| !text.offsets[*token].is_empty()).collect();
                let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { return true };
                let bytes = text.offsets[*first].start..text.offsets[*last].end;
                let ids: Vec<u32> = tokens.iter().map(|token| tokenized.input_ids[*token]).collect();
                let Ok(decoded) = tokenizer.decode(&ids) else { return false };
                solid(&decoded).eq(solid(&text.text[bytes]))
            })
    }

    pub(super) fn conversation(
        &self,
        rendered: Rendered,
        template: &ChatTemplate,
        train_on: TrainOn,
    ) -> Result<Tokenized, RowProblem> {
        let tokenizer = self.tokenizer()?;
        let encoding = tokenizer.encode(&rendered.text).map_err(RowProblem::whole)?;
        let bos = tokenizer.bos();
        if let (Some(bos), [first, second, ..]) = (bos, encoding.ids.as_slice())
            && *first == bos.id
            && *second == bos.id
        {
            return Err(RowProblem::whole(format!(
                "the rendered conversation begins with {} twice; the chat template of {} writes it already, so \
                 remove it from the first message",
                bos.text,
                template.origin()
            )));
        }
        let added = tokenizer.prefix().first().copied();
        let traits = TemplateTraits {
            end_of_turn: rendered.end_of_turn,
            dropped_thoughts: rendered.dropped_thoughts,
            marked: rendered.marked,
            silent: rendered.silent,
            lacks_bos: added.is_some() && added != encoding.ids.first().copied(),
        };
        let labels = labels_within(&encoding, &rendered.text, &rendered.spans, tokenizer);
        Ok(Tokenized {
            labels,
            supervision: match rendered.method {
                _ if train_on == TrainOn::All => Supervision::Everything,
                method => Supervision::Template(method.unwrap_or(SpanMethod::Prefix)),
            },
            input_ids: encoding.ids,
            text: Some(TokenizedText {
                text: rendered.text,
                offsets: encoding.offsets,
                is_exact: encoding.is_exact,
            }),
            rendered: Some(traits),
            side: Side::Plain,
        })
    }

    /// Tokenizes a text whose bytes from `answer` on are supervised, or with `everything` all of them. The EOS behind it is
    /// supervised unless the answer is blank: that would teach silence, so nothing of a blank answer is supervised.
    pub(super) fn plain_text(
        &self,
        text: String,
        answer: usize,
        everything: bool,
    ) -> Result<Tokenized, RowProblem> {
        let is_blank = text[answer..].trim().is_empty();
        let supervised = match (everything, is_blank) {
            (true, _) => 0,
            (false, true) => text.len(),
            (false, false) => answer,
        };
        let supervision =
            if everything || answer == 0 { Supervision::Everything } else { Supervision::Completion };
        let tokenizer = self.tokenizer()?;
        let Some(eos) = tokenizer.eos() else {
            return Err(RowProblem::whole(
                "the tokenizer declares no eos_token, so the model could not learn where to stop; declare it in \
                 tokenizer_config.json",
            ));
        };
        let encoding = tokenizer.encode(&text).map_err(RowProblem::whole)?;
        if let (Some(bos), Some(first)) = (tokenizer.bos(), encoding.ids.first())
            && *first == bos.id
            && tokenizer.prefix().contains(first)
        {
            return Err(RowProblem::whole(format!(
                "the text begins with {0}, and the tokenizer adds {0} by itself; remove it from the text",
                bos.text
            )));
        }
        let span = supervised..text.len();
        let mut labels = if supervised == 0 {
            encoding.ids.iter().map(|id| *id as i32).collect()
        } else {
            labels_within(&encoding, &text, std::slice::from_ref(&span), tokenizer)
        };
        let Encoding { mut ids, mut offsets, is_exact } = encoding;
        let prefix = tokenizer.prefix();
        let is_whole = supervision == Supervision::Everything && !is_blank;
        let prefix_labels = prefix.iter().map(|id| if is_whole { *id as i32 } else { IGNORED });
        labels.splice(0..0, prefix_labels);
        ids.splice(0..0, prefix.iter().copied());
        offsets.splice(0..0, prefix.iter().map(|_| 0..0));
        let end = text.len();
        for id in tokenizer.suffix().iter().copied().filter(|id| *id != eos.id).chain([eos.id]) {
            ids.push(id);
            labels.push(if is_blank { IGNORED } else { id as i32 });
            offsets.push(end..end);
        }
        Ok(Tokenized {
            input_ids: ids,
            labels,
            text: Some(TokenizedText { text, offsets, is_exact }),
            supervision,
            rendered: None,
            side: Side::Plain,
        })
    }

    fn tokenizer(&self) -> Result<&Tokenizer, RowProblem> {
        self.tokenizer.as_deref().ok_or_else(|| RowProblem::whole("no tokenizer"))
    }

    fn spelled(&self, id: u32) -> String {
        let token = self.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token(id));
        token.map(|token| format!(" (the token `{token}`)")).unwrap_or_default()
    }
}

fn given_tokens(input_ids: &[u32], labels: Option<&[i64]>) -> Result<Tokenized, RowProblem> {
    if let Some(at) = input_ids.iter().position(|id| i32::try_from(*id).is_err()) {
        return Err(RowProblem::at(
            format!("/input_ids/{at}"),
            format!("{} is not a token id", input_ids[at]),
        ));
    }
    let (labels, supervision) = match labels {
        None => (input_ids.iter().map(|id| *id as i32).collect(), Supervision::Everything),
        Some(labels) => {
            if labels.len() != input_ids.len() {
                return Err(RowProblem::at(
                    "/labels",
                    format!("{} labels for {} tokens", labels.len(), input_ids.len()),
                ));
            }
            let label = |(at, label): (usize, &i64)| match i32::try_from(*label) {
                Ok(label) if label >= 0 || label == IGNORED => Ok(label),
                _ => Err(RowProblem::at(
                    format!("/labels/{at}"),
                    format!("{label} is neither a token id nor {IGNORED}"),
                )),
            };
            (labels.iter().enumerate().map(label).collect::<Result<_, _>>()?, Supervision::Labels)
        }
    };
    Ok(Tokenized {
        input_ids: input_ids.to_vec(),
        labels,
        text: None,
        supervision,
        rendered: None,
        side: Side::Plain,
    })
}

/// Labels the tokens whose text is inside `spans` (ascending). A token that straddles a border is inside; a special
/// token is inside only if its own text is, since some special tokens include the white space around them.
fn labels_within(encoding: &Encoding, text: &str, spans: &[Range<usize>], tokenizer: &Tokenizer) -> Vec<i32> {
    let mut next = 0;
    let label = |(id, offset): (&u32, &Range<usize>)| {
        let place = match tokenizer.special(*id) {
            Some(special) => match text.get(offset.clone()).and_then(|covered| covered.find(special)) {
                Some(at) => offset.start + at..offset.start + at + special.len(),
                None => offset.clone(),
            },
            None => offset.clone(),
        };
        while spans.get(next).is_some_and(|span| span.end <= place.start) {
            next += 1;
        }
        let inside = spans.get(next).is_some_and(|span| {
            place.start < span.end && (place.end > span.start || place.start >= span.start)
        });
        if inside { *id as i32 } else { IGNORED }
    };
    encoding.ids.iter().zip(&encoding.offsets).map(label).collect()
}

/// Runs of consecutive supervised tokens.
fn supervised_runs(labels: &[i32]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + labels[from..].iter().position(|label| *label != IGNORED)?;
        let length = labels[start..].iter().position(|label| *label == IGNORED);
        from = length.map_or(labels.len(), |length| start + length);
        Some(start..from)
    })
}

fn solid(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|character| !character.is_whitespace())
}
