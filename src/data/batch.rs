//! Micro-batches and optimizer steps as training takes them: ids, targets and where documents begin, and the cursor
//! behind each step. Knows no text and no threads.

use serde::{Deserialize, Serialize};

use super::example::RowId;
use super::sequence::Sequence;

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

/// Where a step begins: all that has to be kept to go on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// From 0.
    pub epoch: u64,
    /// Of the next example in the order of the epoch.
    pub position: u64,
    /// Steps done.
    pub step: u64,
}

/// What one forward pass sees: documents one behind the other, without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids of all documents, `[tokens]`.
    pub input_ids: Vec<u32>,
    /// What each position has to predict, `[tokens]`; −100: nothing. Never reaches into the next document.
    pub targets: Vec<i32>,
    /// Position of each token within its document, `[tokens]`, from 0.
    pub position_ids: Vec<u32>,
    /// Where documents begin, `[documents + 1]`: the first is 0, the last the number of tokens.
    pub document_offsets: Vec<u32>,
    /// Where each document comes from, `[documents]`.
    pub rows: Vec<RowId>,
    /// How many targets are not −100.
    pub supervised_tokens: u64,
}

impl MicroBatch {
    /// Appends a document.
    pub(super) fn push(&mut self, sequence: Sequence) {
        if self.document_offsets.is_empty() {
            self.document_offsets.push(0);
        }
        self.position_ids.extend(0..sequence.input_ids.len() as u32);
        self.input_ids.extend(sequence.input_ids);
        self.targets.extend(sequence.targets);
        self.document_offsets.push(self.input_ids.len() as u32);
        self.rows.push(sequence.row);
        self.supervised_tokens += sequence.supervised_tokens as u64;
    }

    /// Tokens in all documents.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
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
    /// Over all micro-batches: what the sum of losses is divided by. At least one.
    pub supervised_tokens: u64,
    /// Where the next step begins.
    pub cursor: Cursor,
}

impl StepBatch {
    /// Tokens in all micro-batches.
    pub fn tokens(&self) -> usize {
        self.micro_batches.iter().map(MicroBatch::tokens).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lie_one_behind_the_other() {
        let mut batch = MicroBatch::default();
        for (row, ids) in [(3, vec![5, 6, 7]), (9, vec![8, 9])] {
            let targets = ids[1..].iter().map(|id| *id as i32).chain([-100]).collect();
            let row = RowId { dataset: 1, row };
            let supervised_tokens = ids.len() - 1;
            batch.push(Sequence { row, input_ids: ids, targets, supervised_tokens });
        }
        assert_eq!(batch.input_ids, [5, 6, 7, 8, 9]);
        assert_eq!(batch.targets, [6, 7, -100, 9, -100]);
        assert_eq!(batch.position_ids, [0, 1, 2, 0, 1]);
        assert_eq!(batch.document_offsets, [0, 3, 5]);
        assert_eq!((batch.supervised_tokens, batch.rows.len(), batch.tokens()), (3, 2, 5));
    }

    #[test]
    fn a_fraction_of_an_epoch_is_a_number_of_examples() {
        let batching =
            |epochs| Batching { micro_batch_size: 1, gradient_accumulation_steps: 1, epochs, max_steps: None };
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
