//! Micro-batches and optimizer steps as training takes them: ids, targets, where documents and groups begin, and the
//! cursor after each step. Knows no text and no threads.

use std::iter::Sum;
use std::ops::{Add, Range};

use serde::{Deserialize, Serialize};

use super::example::RowId;
use super::sequence::{Group, Sequence, Side};
use super::tokenize::IGNORED;

/// How many examples go into a step, and when to end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Batching {
    /// Sequences per forward pass.
    pub micro_batch_size: usize,
    /// Forward passes per optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Passes over the data; a fraction ends within an epoch, at the nearest whole number of examples.
    pub epochs: Option<f64>,
    /// Optimizer steps. With `epochs` too, the first reached ends the run; alone, the data are passed over as often
    /// as needed.
    pub max_steps: Option<u64>,
}

impl Batching {
    /// How many of the `examples` of `epoch` (from 0) belong to the run.
    pub(super) fn examples_of(&self, epoch: u64, examples: u64) -> u64 {
        match self.epochs {
            None => examples,
            Some(epochs) => {
                let share = (epochs - epoch as f64).clamp(0.0, 1.0);
                let taken = (share * examples as f64).round() as u64;
                // A run of a tenth of an epoch of three examples sees one of them.
                if epoch == 0 && epochs > 0.0 { taken.max(1).min(examples) } else { taken }
            }
        }
    }

    /// No epoch from `epoch` on belongs to the run.
    pub(super) fn ends_before(&self, epoch: u64) -> bool {
        self.epochs.is_some_and(|epochs| epoch as f64 >= epochs)
    }

    /// All steps are done.
    pub(super) fn done(&self, steps: u64) -> bool {
        self.max_steps.is_some_and(|max_steps| steps >= max_steps)
    }
}

/// What is in a micro-batch or a step, counted in the units that objectives divide by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Supervised tokens.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// Groups of documents.
    pub groups: u64,
    /// Documents that are chosen or wanted answers.
    pub chosen: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            documents: self.documents + other.documents,
            groups: self.groups + other.groups,
            chosen: self.chosen + other.chosen,
        }
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Self::add)
    }
}

/// Where a step begins: all that a resumed run needs to know of the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// From 0.
    pub epoch: u64,
    /// Position of the next example in the order of the epoch.
    pub position: u64,
    /// Steps done.
    pub step: u64,
}

/// What one forward pass sees: documents one after the other, without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids of all documents, `[tokens]`.
    pub input_ids: Vec<u32>,
    /// What each position has to predict, `[tokens]`; −100: nothing. Never reaches into the next document.
    pub targets: Vec<i32>,
    /// Position of each token within its document, `[tokens]`, from 0; behind a prefix it continues.
    pub position_ids: Vec<u32>,
    /// Where documents begin, `[documents + 1]`: the first is 0, the last the number of tokens.
    pub document_offsets: Vec<u32>,
    /// The tokens that each document begins with and that stand in another one, `[documents]`; empty: none has any. They are
    /// not supervised.
    pub prefixes: Vec<Range<u32>>,
    /// Where each document comes from, `[documents]`.
    pub rows: Vec<RowId>,
    /// Where groups begin among the documents, `[groups + 1]`; empty: each document is a group of its own.
    pub group_offsets: Vec<u32>,
    /// What each document is to its group, `[documents]`; empty: plain text to be learned.
    pub sides: Vec<Side>,
    /// How many targets are not −100.
    pub supervised_tokens: u64,
}

impl MicroBatch {
    /// Appends a group.
    pub fn push(&mut self, Group(documents): Group) {
        if documents.len() != 1 && self.group_offsets.is_empty() {
            self.group_offsets = (0..=self.rows.len() as u32).collect();
        }
        let first = self.tokens();
        documents.into_iter().for_each(|document| self.push_document(document, first));
        if !self.group_offsets.is_empty() {
            self.group_offsets.push(self.rows.len() as u32);
        }
    }

    /// Appends a document of a group whose first document begins at token `first`.
    fn push_document(&mut self, sequence: Sequence, first: usize) {
        if self.document_offsets.is_empty() {
            self.document_offsets.push(0);
        }
        if sequence.prefix > 0 {
            self.prefixes.resize(self.rows.len(), 0..0);
            self.prefixes.push(first as u32..(first + sequence.prefix) as u32);
        } else if !self.prefixes.is_empty() {
            self.prefixes.push(0..0);
        }
        self.position_ids.extend(sequence.prefix as u32..sequence.tokens() as u32);
        self.input_ids.extend(sequence.input_ids);
        self.targets.extend(sequence.targets);
        self.document_offsets.push(self.input_ids.len() as u32);
        self.rows.push(sequence.row);
        if sequence.side != Side::Plain {
            self.sides.push(sequence.side);
        }
        self.supervised_tokens += sequence.supervised_tokens as u64;
    }

    /// Tokens in all documents, shared ones once.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// All token ids of a document.
    pub fn ids(&self, document: usize) -> Vec<u32> {
        let prefix = self.prefixes.get(document).cloned().unwrap_or_default();
        let own = self.document_offsets[document]..self.document_offsets[document + 1];
        let ids = |range: Range<u32>| &self.input_ids[range.start as usize..range.end as usize];
        [ids(prefix), ids(own)].concat()
    }

    /// The rows of each document, without its prefix.
    pub fn documents(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.document_offsets.windows(2).map(|ends| ends[0] as usize..ends[1] as usize)
    }

    /// The documents of each group.
    pub fn groups(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let groups = self.counts().groups as usize;
        let start = |group: usize| self.group_offsets.get(group).map_or(group, |offset| *offset as usize);
        (0..groups).map(move |group| start(group)..start(group + 1))
    }

    /// Supervised tokens of each document.
    pub fn lengths(&self) -> impl Iterator<Item = u64> + '_ {
        let is_supervised = |target: &&i32| **target != IGNORED;
        self.documents().map(move |rows| self.targets[rows].iter().filter(is_supervised).count() as u64)
    }

    /// The same prompts, each with the answer of the document before it, the first with that of the last: prompts and
    /// answers that do not belong together. An answer begins at a document's first supervised token.
    #[must_use]
    pub fn mismatched(&self) -> Self {
        let parts: Vec<(Range<usize>, Range<usize>)> = self
            .documents()
            .map(|rows| {
                let first = self.targets[rows.clone()].iter().position(|target| *target != IGNORED);
                let answer = first.map_or(rows.end, |first| rows.start + first + 1);
                (rows.start..answer, answer..rows.end)
            })
            .collect();
        let answers = parts.iter().cycle().skip(parts.len().saturating_sub(1)).map(|(_, answer)| answer);
        let mut mismatched = Self { rows: self.rows.clone(), document_offsets: vec![0], ..Self::default() };
        for ((prompt, _), answer) in parts.iter().zip(answers) {
            let ids = self.input_ids[prompt.clone()].iter().chain(&self.input_ids[answer.clone()]);
            let document = mismatched.input_ids.len();
            mismatched.input_ids.extend(ids.copied());
            let tokens = mismatched.input_ids.len() - document;
            mismatched.position_ids.extend(0..tokens as u32);
            let learned = mismatched.input_ids[document + prompt.len()..].iter().map(|id| *id as i32);
            let learned: Vec<i32> = learned.chain([IGNORED]).collect();
            mismatched.supervised_tokens += answer.len() as u64;
            mismatched.targets.extend(std::iter::repeat_n(IGNORED, prompt.len() - 1));
            mismatched.targets.extend(learned);
            mismatched.document_offsets.push(mismatched.input_ids.len() as u32);
        }
        mismatched
    }

    /// What it holds, in the units that objectives divide by.
    pub fn counts(&self) -> Counts {
        let documents = self.document_offsets.len().saturating_sub(1);
        let groups = if self.group_offsets.is_empty() { documents } else { self.group_offsets.len() - 1 };
        let chosen = self.sides.iter().filter(|side| matches!(side, Side::Chosen | Side::Wanted)).count();
        Counts {
            tokens: self.supervised_tokens,
            documents: documents as u64,
            groups: groups as u64,
            chosen: chosen as u64,
        }
    }
}

/// What one optimizer step sees.
#[derive(Clone, Debug, PartialEq)]
pub struct StepBatch {
    /// From 1.
    pub step: u64,
    /// Epochs behind us after this step: examples consumed by examples per epoch.
    pub epoch: f64,
    /// In order; the gradients of all of them are added up. Never empty.
    pub micro_batches: Vec<MicroBatch>,
    /// Over all micro-batches.
    pub counts: Counts,
    /// Where the next step begins.
    pub cursor: Cursor,
}

impl StepBatch {
    /// Where the documents of all micro-batches come from.
    pub fn rows(&self) -> impl Iterator<Item = RowId> + Clone {
        self.micro_batches.iter().flat_map(|micro_batch| micro_batch.rows.iter().copied())
    }

    /// Tokens in all micro-batches.
    pub fn tokens(&self) -> usize {
        self.micro_batches.iter().map(MicroBatch::tokens).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(row: u64, ids: Vec<u32>) -> Sequence {
        let targets = ids[1..].iter().map(|id| *id as i32).chain([-100]).collect();
        let row = RowId { dataset: 1, row };
        let supervised_tokens = ids.len() - 1;
        Sequence { row, side: Side::Plain, prefix: 0, input_ids: ids, targets, supervised_tokens }
    }

    #[test]
    fn documents_lie_one_after_the_other() {
        let mut batch = MicroBatch::default();
        batch.push(Group::from(sequence(3, vec![5, 6, 7])));
        batch.push(Group::from(sequence(9, vec![8, 9])));
        assert_eq!(batch.input_ids, [5, 6, 7, 8, 9]);
        assert_eq!(batch.targets, [6, 7, -100, 9, -100]);
        assert_eq!(batch.position_ids, [0, 1, 2, 0, 1]);
        assert_eq!(batch.document_offsets, [0, 3, 5]);
        assert_eq!((batch.rows.len(), batch.tokens()), (2, 5));
        assert_eq!(batch.groups().collect::<Vec<_>>(), [0..1, 1..2]);
        assert_eq!(batch.counts(), Counts { tokens: 3, documents: 2, groups: 2, chosen: 0 });
    }

    #[test]
    fn groups_are_told_apart_once_one_has_several_documents() {
        let mut batch = MicroBatch::default();
        batch.push(Group::from(sequence(0, vec![5, 6])));
        assert!(batch.group_offsets.is_empty());
        batch.push(Group(vec![sequence(1, vec![7, 8, 9]), sequence(1, vec![7, 5])]));
        batch.push(Group::from(sequence(2, vec![4, 3])));
        assert_eq!(batch.group_offsets, [0, 1, 3, 4]);
        assert_eq!(batch.groups().collect::<Vec<_>>(), [0..1, 1..3, 3..4]);
        assert_eq!(batch.lengths().collect::<Vec<_>>(), [1, 2, 1, 1]);
        assert_eq!(batch.counts(), Counts { tokens: 5, documents: 4, groups: 3, chosen: 0 });
        let both = [batch.counts(), batch.counts()].into_iter().sum::<Counts>();
        assert_eq!(both, Counts { tokens: 10, documents: 8, groups: 6, chosen: 0 });
    }

    #[test]
    fn a_document_behind_a_prefix_continues_its_positions() {
        let mut batch = MicroBatch::default();
        batch.push(Group::from(sequence(0, vec![5, 6])));
        assert!(batch.prefixes.is_empty());
        let rejected = Sequence { prefix: 2, ..sequence(1, vec![9, 4]) };
        batch.push(Group(vec![sequence(1, vec![7, 8, 9, 3]), rejected]));
        batch.push(Group::from(sequence(2, vec![4, 3])));
        assert_eq!(batch.prefixes, [0..0, 0..0, 2..4, 0..0]);
        assert_eq!(batch.position_ids, [0, 1, 0, 1, 2, 3, 2, 3, 0, 1]);
        assert_eq!(batch.document_offsets, [0, 2, 6, 8, 10]);
        assert_eq!((batch.ids(1), batch.ids(2)), (vec![7, 8, 9, 3], vec![7, 8, 9, 4]));
    }

    #[test]
    fn mismatched_answers_are_those_of_the_document_before() {
        let mut batch = MicroBatch::default();
        for (ids, targets) in [
            (vec![1, 2, 3, 4], vec![-100, 3, 4, -100]),
            (vec![5, 6], vec![6, -100]),
            (vec![7, 8, 9], vec![-100, 9, -100]),
        ] {
            let row = RowId { dataset: 0, row: 0 };
            let sequence = Sequence {
                row,
                side: Side::Wanted,
                prefix: 0,
                input_ids: ids,
                targets,
                supervised_tokens: 1,
            };
            batch.push(Group::from(sequence));
        }
        let mismatched = batch.mismatched();
        assert_eq!(mismatched.input_ids, [1, 2, 9, 5, 3, 4, 7, 8, 6]);
        assert_eq!(mismatched.targets, [-100, 9, -100, 3, 4, -100, -100, 6, -100]);
        assert_eq!(mismatched.document_offsets, [0, 3, 6, 9]);
        assert_eq!(mismatched.position_ids, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        assert_eq!(batch.counts().chosen, 3);
    }

    #[test]
    fn a_fraction_of_an_epoch_is_a_number_of_examples() {
        let batching = |epochs| Batching {
            micro_batch_size: 1,
            gradient_accumulation_steps: 1,
            epochs,
            max_steps: None,
        };
        assert_eq!(batching(Some(1.1)).examples_of(0, 10), 10);
        assert_eq!(batching(Some(1.1)).examples_of(1, 10), 1);
        assert_eq!(batching(Some(0.1)).examples_of(0, 3), 1);
        assert_eq!(batching(None).examples_of(7, 10), 10);
        assert!(batching(Some(2.0)).ends_before(2) && !batching(Some(2.1)).ends_before(2));
    }

    #[test]
    fn a_cursor_reads_itself_back() {
        let cursor = Cursor { epoch: 1, position: 2, step: 3 };
        let text = serde_json::to_string(&cursor).unwrap();
        assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), cursor);
        assert!(serde_json::from_str::<Cursor>(r#"{"epoch": 1}"#).is_err());
    }
}
