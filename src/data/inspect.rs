//! One row exactly as the model will see it: every token with its text and whether it is supervised. The tokens are made
//! by the code that training uses.

use super::corpus::Corpus;
use super::error::Error;
use super::example::RowId;
use super::sequence::{FitOutcome, Side};
use super::source::{Place, RowError};
use super::tokenize::{IGNORED, Supervision, Tokenized};

/// One row as the model will see it.
#[derive(Clone, Debug, PartialEq)]
pub struct InspectedRow {
    /// The row.
    pub id: RowId,
    /// Its place in the file.
    pub place: Place,
    /// It is evaluated on, not trained on.
    pub held_out: bool,
    /// What it is to the other documents of its row.
    pub side: Side,
    /// How its supervised tokens were found.
    pub supervision: Supervision,
    /// How it is used.
    pub verdict: Verdict,
    /// Names of its columns and keys of messages that are not used.
    pub unused: Vec<String>,
    /// All its tokens in order, also those that will be cut off.
    pub pieces: Vec<Piece>,
    /// Number of pieces after cutting; the model does not see the others.
    pub kept_tokens: usize,
    /// Number of kept tokens that are supervised, that is predicted by the position before.
    pub supervised_tokens: usize,
}

/// How a row is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is used as it is.
    Whole,
    /// Its end is cut off (`on_overflow = "truncate"`).
    Truncated,
    /// It is left out, being too long (`on_overflow = "drop"`).
    TooLong,
    /// It is left out, being longer than the model's positions (`on_beyond_positions = "drop"`).
    BeyondPositions,
    /// It is left out, as nothing in it is supervised (`on_empty = "drop"`).
    Empty,
    /// It stops the run.
    Refused(RowError),
}

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its text; empty for a token that shares its character with the one before. `None` without a tokenizer.
    pub text: Option<String>,
    /// Token id.
    pub id: u32,
    /// It is supervised: the position before has to predict it (or rather `label`, which records may choose freely).
    pub supervised: bool,
    /// The label at this token; −100 where it is not supervised. Differs from `id` only in `tokens` records.
    pub label: i32,
}

impl Corpus {
    /// Rows of all datasets together, held-out ones included.
    pub fn rows(&self) -> u64 {
        self.datasets().map(super::source::Dataset::rows).sum()
    }

    /// The row that is the `number`-th, from 0, counting through the datasets in the order of the recipe.
    pub fn row_id(&self, number: u64) -> Option<RowId> {
        let mut row = number;
        for (dataset, entry) in (0_u32..).zip(self.datasets()) {
            match row.checked_sub(entry.rows()) {
                None => return Some(RowId { dataset, row }),
                Some(behind) => row = behind,
            }
        }
        None
    }

    /// Shows the documents of the `number`-th row, counted as in [`row_id`](Self::row_id): one, or the answers of a pair.
    ///
    /// # Errors
    /// There is no such row, or it cannot be made into tokens. A row that is refused only for its length, or because
    /// nothing in it is supervised, is shown, with [`Verdict::Refused`].
    pub fn row(&self, number: u64) -> Result<Vec<InspectedRow>, Error> {
        let id = self.row_id(number).ok_or_else(|| Error::NoSuchRow { row: number, rows: self.rows() })?;
        let inner = self.inner();
        let mut unused: Vec<String> =
            inner.part(id).dataset.unread_columns().into_iter().map(str::to_owned).collect();
        let documents = inner.tokenize_and_report(id, &mut |name| {
            if !unused.iter().any(|known| known == name) {
                unused.push(name.to_owned());
            }
        })?;
        let shown: Vec<_> = documents
            .iter()
            .map(|document| (self.pieces(document), document.supervision, document.side))
            .collect();
        let (verdict, group) = match inner.fit(id, documents) {
            Ok(FitOutcome::Whole(group)) => (Verdict::Whole, Some(group)),
            Ok(FitOutcome::Truncated { group, .. }) => (Verdict::Truncated, Some(group)),
            Ok(FitOutcome::TooLong { .. }) => (Verdict::TooLong, None),
            Ok(FitOutcome::BeyondPositions { .. }) => (Verdict::BeyondPositions, None),
            Ok(FitOutcome::Empty { .. }) => (Verdict::Empty, None),
            Err(error) => (Verdict::Refused(error), None),
        };
        let row = |(index, (pieces, supervision, side)): (usize, (Vec<Piece>, _, _))| {
            let (kept_tokens, supervised_tokens) = match group.as_ref().map(|group| &group.0[index]) {
                Some(sequence) => (sequence.tokens(), sequence.supervised_tokens),
                None => (pieces.len(), pieces.iter().filter(|piece| piece.supervised).count()),
            };
            InspectedRow {
                id,
                place: inner.part(id).dataset.place(id.row),
                held_out: inner.is_held_out(id),
                side,
                supervision,
                verdict: verdict.clone(),
                unused: unused.clone(),
                pieces,
                kept_tokens,
                supervised_tokens,
            }
        };
        Ok(shown.into_iter().enumerate().map(row).collect())
    }

    fn pieces(&self, tokenized: &Tokenized) -> Vec<Piece> {
        let tokenizer = self.examples().tokenizer.as_deref();
        let ids = &tokenized.input_ids;
        let texts: Vec<Option<String>> = match (&tokenized.text, tokenizer) {
            (Some(text), Some(tokenizer)) => {
                let mut shown = 0;
                let piece = |(id, offset): (&u32, &std::ops::Range<usize>)| {
                    // Added to the text, like EOS; or text that normalization made up, which is shown as nothing.
                    if offset.is_empty() {
                        return Some(tokenizer.special(*id).unwrap_or_default().to_owned());
                    }
                    let piece = text.text.get(offset.start.max(shown)..offset.end).unwrap_or_default();
                    shown = shown.max(offset.end);
                    Some(piece.to_owned())
                };
                ids.iter().zip(&text.offsets).map(piece).collect()
            }
            (None, Some(tokenizer)) => tokenizer.pieces(ids).into_iter().map(Some).collect(),
            (_, None) => vec![None; ids.len()],
        };
        ids.iter()
            .zip(&tokenized.labels)
            .zip(texts)
            .enumerate()
            .map(|(position, ((id, label), text))| {
                // No position could predict the first token.
                let supervised = position > 0 && *label != IGNORED;
                Piece { text, id: *id, supervised, label: if supervised { *label } else { IGNORED } }
            })
            .collect()
    }
}
