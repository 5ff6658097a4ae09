//! A tokenized example made fit for training: cut to the sequence length, labels shifted onto the positions that
//! predict them; examples that are too long or have no supervised token. Knows no files and no batches.

use super::example::{RowId, RowProblem};
use super::spec::{OnBeyondPositions, OnEmpty, OnOverflow};
use super::tokenize::{IGNORED, Tokenized};

/// What a document is to its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// Text to be learned.
    #[default]
    Plain,
    /// The answer of a pair that is preferred.
    Chosen,
    /// The other answer of that pair.
    Rejected,
    /// A single answer that is wanted.
    Wanted,
    /// A single answer that is not.
    Unwanted,
}

impl Side {
    /// Its name for programs; `None` for text to be learned.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Chosen => Some("chosen"),
            Self::Rejected => Some("rejected"),
            Self::Wanted => Some("wanted"),
            Self::Unwanted => Some("unwanted"),
        }
    }
}

/// One document of an example, ready to be packed. Its first tokens may be those of its group's first document, which are
/// computed there for both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The example.
    pub row: RowId,
    /// What it is to its group.
    pub side: Side,
    /// How many tokens of its group's first document stand before its own.
    pub prefix: usize,
    /// Its own token ids.
    pub input_ids: Vec<u32>,
    /// `targets[t]` is `labels[t + 1]`, which position *t* has to predict; −100: none. The last is always −100.
    pub targets: Vec<i32>,
    /// How many targets are not −100. At least one.
    pub supervised_tokens: usize,
}

/// The sequences of one example, which share a micro-batch: one, or the answers that are compared with each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(pub Vec<Sequence>);

impl Group {
    /// Of the sequences of one example, which keep the tokens of a prompt once.
    pub fn new(mut sequences: Vec<Sequence>) -> Self {
        if let Some((first, others)) = sequences.split_first_mut() {
            others.iter_mut().for_each(|other| other.share(first));
        }
        Self(sequences)
    }

    /// Tokens of all its sequences together, shared ones once.
    pub fn tokens(&self) -> usize {
        self.0.iter().map(|sequence| sequence.input_ids.len()).sum()
    }

    /// Tokens of its longest sequence.
    pub fn longest(&self) -> usize {
        self.0.iter().map(|sequence| sequence.input_ids.len()).max().unwrap_or(0)
    }

    /// Memory that it takes, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let tokens = |sequence: &Sequence| sequence.input_ids.capacity() + sequence.targets.capacity();
        let bytes = |sequence: &Sequence| size_of::<Sequence>() + tokens(sequence) * size_of::<u32>();
        (size_of::<Self>() + self.0.iter().map(bytes).sum::<usize>()) as u64
    }

    /// Supervised tokens of all its sequences together.
    pub fn supervised_tokens(&self) -> usize {
        self.0.iter().map(|sequence| sequence.supervised_tokens).sum()
    }
}

impl Sequence {
    /// Of a document's ids and the labels at their own positions, of which there may be more.
    pub fn new(row: RowId, side: Side, input_ids: Vec<u32>, labels: Vec<i32>) -> Self {
        let mut targets: Vec<i32> =
            labels.into_iter().skip(1).take(input_ids.len().saturating_sub(1)).collect();
        targets.resize(input_ids.len(), IGNORED);
        let supervised_tokens = targets.iter().filter(|target| **target != IGNORED).count();
        Self { row, side, prefix: 0, input_ids, targets, supervised_tokens }
    }

    /// Leaves the leading tokens that it has in common with `first` to that sequence, as far as neither learns or predicts
    /// anything there: the last token of a prompt predicts the answer, so each keeps its own.
    fn share(&mut self, first: &Self) {
        let ids = self.input_ids.iter().zip(&first.input_ids);
        let targets = self.targets.iter().zip(&first.targets);
        let is_shared =
            |((a, b), (c, d)): &((&u32, &u32), (&i32, &i32))| a == b && **c == IGNORED && **d == IGNORED;
        self.prefix = ids.zip(targets).take_while(is_shared).count();
        // Kept by the thousand: without the room of what was taken out.
        self.input_ids = self.input_ids.split_off(self.prefix);
        self.targets = self.targets.split_off(self.prefix);
    }

    /// All tokens of the document.
    pub fn tokens(&self) -> usize {
        self.prefix + self.input_ids.len()
    }
}

impl From<Sequence> for Group {
    fn from(sequence: Sequence) -> Self {
        Self(vec![sequence])
    }
}

/// The rules of the `[data]` table that concern single examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest sequence in tokens.
    pub max_seq_len: usize,
    /// What to do with a longer one.
    pub on_overflow: OnOverflow,
    /// What to do with one without a supervised token.
    pub on_empty: OnEmpty,
    /// Positions that the model was made for; `None`: not known.
    pub positions: Option<usize>,
    /// What to do with a document that has more.
    pub on_beyond_positions: OnBeyondPositions,
    /// Whether both answers of a pair have a prompt of their own, for models that cannot share it.
    pub copies_prompts: bool,
}

/// What the limits make of an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FitOutcome {
    /// Trained on, whole.
    Whole(Group),
    /// Trained on, its end cut off.
    Truncated {
        /// The rest.
        group: Group,
        /// The length of its longest document before, in tokens.
        tokens: usize,
    },
    /// Left out: too long.
    TooLong {
        /// The length of its longest document in tokens.
        tokens: usize,
    },
    /// Left out: longer than the model's positions.
    BeyondPositions {
        /// The length of its longest document in tokens, before it was cut.
        tokens: usize,
    },
    /// Left out: a document of it has no supervised token.
    Empty {
        /// The length of its longest document in tokens, before it was cut.
        tokens: usize,
    },
}

impl FitOutcome {
    /// What is trained on; `None` if the example is left out.
    pub fn group(self) -> Option<Group> {
        match self {
            FitOutcome::Whole(group) | FitOutcome::Truncated { group, .. } => Some(group),
            FitOutcome::TooLong { .. } | FitOutcome::BeyondPositions { .. } | FitOutcome::Empty { .. } => {
                None
            }
        }
    }
}

impl Limits {
    /// Fits the documents of an example to the limits.
    ///
    /// # Errors
    /// It is too long under `on_overflow = "error"` or `on_beyond_positions = "error"`, or has no supervised token (perhaps only once it is cut) under
    /// `on_empty = "error"`.
    pub fn fit(&self, row: RowId, documents: Vec<Tokenized>) -> Result<FitOutcome, RowProblem> {
        let tokens = documents.iter().map(|document| document.input_ids.len()).max().unwrap_or(0);
        let truncated = tokens > self.max_seq_len;
        if truncated {
            match self.on_overflow {
                OnOverflow::Error => {
                    return Err(RowProblem::whole(format!(
                        "{tokens} tokens, more than max_seq_len = {}; raise it, or set on_overflow to \"drop\" or \
                             \"truncate\"",
                        self.max_seq_len
                    )));
                }
                OnOverflow::Drop => return Ok(FitOutcome::TooLong { tokens }),
                OnOverflow::Truncate => {}
            }
        }
        if self.is_beyond_positions(tokens.min(self.max_seq_len)) {
            match self.on_beyond_positions {
                OnBeyondPositions::Error => {
                    return Err(RowProblem::whole(format!(
                        "{tokens} tokens, more than the {} positions that the model was made for \
                         (max_position_embeddings); shorten the row, or set on_beyond_positions to \"drop\" or \"learn\"",
                        self.positions.unwrap_or_default()
                    )));
                }
                OnBeyondPositions::Drop => return Ok(FitOutcome::BeyondPositions { tokens }),
                OnBeyondPositions::Learn => {}
            }
        }
        let reason = match documents.iter().find_map(|document| document.rendered) {
            Some(traits) if traits.marked => "; turns are marked as not to be learned",
            Some(traits) if traits.silent => "; answers have neither text nor thoughts nor tool calls",
            _ => "",
        };
        let sequences: Vec<Sequence> =
            documents.into_iter().map(|document| self.cut(row, document)).collect();
        if sequences.iter().any(|sequence| sequence.supervised_tokens == 0) {
            return match self.on_empty {
                OnEmpty::Drop => Ok(FitOutcome::Empty { tokens }),
                OnEmpty::Error => {
                    let cut = if truncated {
                        format!(" in its first {} of {tokens} tokens", self.max_seq_len)
                    } else {
                        format!(" in its {tokens} tokens")
                    };
                    Err(RowProblem::whole(format!(
                        "nothing is supervised{cut}{reason}; correct the row, or set on_empty to \"drop\""
                    )))
                }
            };
        }
        let group = if self.copies_prompts { Group(sequences) } else { Group::new(sequences) };
        Ok(if truncated { FitOutcome::Truncated { group, tokens } } else { FitOutcome::Whole(group) })
    }

    /// Whether a document of that length has more tokens than the model has positions.
    pub(super) fn is_beyond_positions(&self, tokens: usize) -> bool {
        self.positions.is_some_and(|positions| tokens > positions)
    }

    /// A document, its end cut off where it is too long, with its labels on the positions that predict them.
    fn cut(&self, row: RowId, document: Tokenized) -> Sequence {
        let Tokenized { mut input_ids, labels, side, .. } = document;
        input_ids.truncate(self.max_seq_len);
        Sequence::new(row, side, input_ids, labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenize::Supervision;

    const ROW: RowId = RowId { dataset: 0, row: 7 };

    fn tokenized(labels: &[i32]) -> Tokenized {
        Tokenized {
            input_ids: (10..).take(labels.len()).collect(),
            labels: labels.to_vec(),
            text: None,
            supervision: Supervision::Labels,
            rendered: None,
            side: Side::Plain,
        }
    }

    fn limits(max_seq_len: usize, on_overflow: OnOverflow, on_empty: OnEmpty) -> Limits {
        Limits {
            max_seq_len,
            on_overflow,
            on_empty,
            positions: None,
            on_beyond_positions: OnBeyondPositions::Error,
            copies_prompts: false,
        }
    }

    #[test]
    fn a_position_predicts_the_label_of_the_next() {
        let outcome =
            limits(4, OnOverflow::Error, OnEmpty::Error).fit(ROW, vec![tokenized(&[5, -100, 6, 7])]);
        let Group(sequences) = outcome.unwrap().group().unwrap();
        let [sequence] = sequences.as_slice() else { panic!() };
        assert_eq!(sequence.targets, [-100, 6, 7, -100]);
        assert_eq!(sequence.supervised_tokens, 2);
    }

    #[test]
    fn a_pair_is_left_out_whole_when_one_answer_is_too_long_or_has_nothing_to_learn() {
        let pair = || {
            let rejected = Tokenized { side: Side::Rejected, ..tokenized(&[-100, 2, 3, 4]) };
            vec![Tokenized { side: Side::Chosen, ..tokenized(&[-100, 2]) }, rejected]
        };
        let fit = |size, rule| limits(size, rule, OnEmpty::Drop).fit(ROW, pair()).unwrap();
        assert_eq!(fit(3, OnOverflow::Drop), FitOutcome::TooLong { tokens: 4 });
        assert_eq!(fit(1, OnOverflow::Truncate), FitOutcome::Empty { tokens: 4 });
        let FitOutcome::Whole(group) = fit(4, OnOverflow::Error) else { panic!() };
        assert_eq!((group.tokens(), group.0[1].side), (6, Side::Rejected));
    }

    #[test]
    fn the_prompt_of_a_pair_is_kept_once_up_to_its_last_token() {
        let answer = |ids: &[u32], prompt: usize, side| Tokenized {
            input_ids: ids.to_vec(),
            labels: ids
                .iter()
                .enumerate()
                .map(|(at, id)| if at < prompt { IGNORED } else { *id as i32 })
                .collect(),
            side,
            ..tokenized(&[])
        };
        let fit = |chosen: &[u32], rejected: &[u32], prompts: [usize; 2]| {
            let documents =
                vec![answer(chosen, prompts[0], Side::Chosen), answer(rejected, prompts[1], Side::Rejected)];
            let limits = limits(9, OnOverflow::Error, OnEmpty::Error);
            limits.fit(ROW, documents).unwrap().group().unwrap()
        };
        let group = fit(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 6, 7], [3, 3]);
        let Group(sequences) = &group;
        assert_eq!((sequences[0].prefix, sequences[0].input_ids.len()), (0, 5));
        assert_eq!((sequences[1].prefix, sequences[1].tokens(), group.tokens()), (2, 6, 9));
        assert_eq!(
            (&sequences[1].input_ids[..], &sequences[1].targets[..]),
            (&[3, 4, 6, 7][..], &[4, 6, 7, -100][..])
        );
        let apart = Limits { copies_prompts: true, ..limits(9, OnOverflow::Error, OnEmpty::Error) };
        let pair = vec![answer(&[1, 2, 3], 2, Side::Chosen), answer(&[1, 2, 4], 2, Side::Rejected)];
        let FitOutcome::Whole(Group(sequences)) = apart.fit(ROW, pair).unwrap() else { panic!() };
        assert_eq!((sequences[1].prefix, &sequences[1].input_ids[..]), (0, &[1, 2, 4][..]));
        // Where prompts differ, or one answer begins earlier, less is shared.
        assert_eq!(fit(&[1, 2, 3, 4], &[1, 9, 3, 5], [3, 3]).0[1].prefix, 1);
        assert_eq!(fit(&[1, 2, 3, 4], &[1, 2, 3, 5], [3, 2]).0[1].prefix, 1);
        assert_eq!(fit(&[1, 2], &[1, 3], [1, 1]).0[1].prefix, 0);
    }

    #[test]
    fn overflow_obeys_its_rule() {
        let fit = |rule| limits(3, rule, OnEmpty::Error).fit(ROW, vec![tokenized(&[1, 2, 3, 4])]);
        assert!(
            fit(OnOverflow::Error).unwrap_err().problem.starts_with("4 tokens, more than max_seq_len = 3")
        );
        assert_eq!(fit(OnOverflow::Drop), Ok(FitOutcome::TooLong { tokens: 4 }));
        let Ok(FitOutcome::Truncated { group, tokens: 4 }) = fit(OnOverflow::Truncate) else { panic!() };
        let sequence = group.0[0].clone();
        assert_eq!((sequence.input_ids.len(), sequence.targets), (3, vec![2, 3, -100]));
    }

    #[test]
    fn d6_rows_beyond_the_positions_of_the_model_obey_their_rule() {
        let fit = |rule, max_seq_len| {
            let limits = Limits {
                positions: Some(3),
                on_beyond_positions: rule,
                ..limits(max_seq_len, OnOverflow::Truncate, OnEmpty::Error)
            };
            limits.fit(ROW, vec![tokenized(&[1, 2, 3, 4])])
        };
        let problem = fit(OnBeyondPositions::Error, 8).unwrap_err().problem;
        assert!(problem.starts_with("4 tokens, more than the 3 positions"), "{problem}");
        assert_eq!(fit(OnBeyondPositions::Drop, 8), Ok(FitOutcome::BeyondPositions { tokens: 4 }));
        assert!(matches!(fit(OnBeyondPositions::Learn, 8), Ok(FitOutcome::Whole(_))));
        // What is cut to fewer tokens has positions for all of them.
        assert!(matches!(fit(OnBeyondPositions::Error, 3), Ok(FitOutcome::Truncated { .. })));
    }

    #[test]
    fn an_example_without_supervised_tokens_obeys_its_rule_even_if_only_after_the_cut() {
        let truncate = |on_empty| limits(3, OnOverflow::Truncate, on_empty);
        let late = tokenized(&[-100, -100, -100, 4]);
        let error = truncate(OnEmpty::Error).fit(ROW, vec![late.clone()]).unwrap_err();
        assert!(error.problem.contains("first 3 of 4 tokens"), "{}", error.problem);
        assert_eq!(truncate(OnEmpty::Drop).fit(ROW, vec![late]), Ok(FitOutcome::Empty { tokens: 4 }));
        // The first label has no position that could predict it; an example without tokens has none at all.
        for labels in [&[1][..], &[1, -100], &[]] {
            let outcome = truncate(OnEmpty::Drop).fit(ROW, vec![tokenized(labels)]);
            assert_eq!(outcome, Ok(FitOutcome::Empty { tokens: labels.len() }));
        }
    }
}
