//! How groups of documents fall into sequences, micro-batches and optimizer steps. A *group* is the documents of one
//! example; they share a micro-batch. Works on lengths alone: the stream of batches and the survey that counts steps
//! use the same [`Packer`], so they cannot disagree.
//!
//! With packing, groups are taken in order and share a sequence as long as they fit (next-fit). There is no padding, so
//! a sequence that is not quite full costs nothing but its share of the step; in return the order of the epoch is kept,
//! and a step always begins at an example: a resumed run needs no more than a position in the epoch.

use super::batch::Batching;

/// The largest unit that a group is the first of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Boundary {
    /// None: it joins the open sequence.
    Group,
    /// A sequence of the open micro-batch.
    Sequence,
    /// A micro-batch of the open optimizer step.
    MicroBatch,
    /// An optimizer step.
    Step,
}

/// Places groups one after the other. Create a new one for each epoch: an optimizer step never spans two; the last of an
/// epoch holds the rest, as in transformers.
#[derive(Clone, Debug)]
pub struct Packer {
    /// Tokens per sequence; 0: one group per sequence.
    sequence_tokens: usize,
    micro_batch_size: usize,
    gradient_accumulation_steps: usize,
    /// In the open sequence.
    tokens: usize,
    /// In the open micro-batch.
    sequences: usize,
    /// In the open step; 0: none is open.
    micro_batches: usize,
}

impl Packer {
    /// For one epoch, or the rest of one from where a step begins. `sequence_tokens`: size of a pack; `None`: one
    /// group per sequence.
    pub fn new(batching: &Batching, sequence_tokens: Option<usize>) -> Packer {
        Packer {
            sequence_tokens: sequence_tokens.unwrap_or(0),
            micro_batch_size: batching.micro_batch_size.max(1),
            gradient_accumulation_steps: batching.gradient_accumulation_steps.max(1),
            tokens: 0,
            sequences: 0,
            micro_batches: 0,
        }
    }

    /// Places the next group, of so many tokens in all its documents together.
    pub fn place(&mut self, tokens: usize) -> Boundary {
        let fits = self.tokens.checked_add(tokens).is_some_and(|total| total <= self.sequence_tokens);
        if self.micro_batches > 0 && fits {
            self.tokens += tokens;
            return Boundary::Group;
        }
        self.tokens = tokens;
        if self.micro_batches > 0 && self.sequences < self.micro_batch_size {
            self.sequences += 1;
            return Boundary::Sequence;
        }
        self.sequences = 1;
        if self.micro_batches > 0 && self.micro_batches < self.gradient_accumulation_steps {
            self.micro_batches += 1;
            return Boundary::MicroBatch;
        }
        self.micro_batches = 1;
        Boundary::Step
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batching(micro_batch_size: usize, gradient_accumulation_steps: usize) -> Batching {
        Batching { micro_batch_size, gradient_accumulation_steps, epochs: Some(1.0), max_steps: None }
    }

    fn places(batching: &Batching, sequence: Option<usize>, lengths: &[usize]) -> Vec<Boundary> {
        let mut packer = Packer::new(batching, sequence);
        lengths.iter().map(|length| packer.place(*length)).collect()
    }

    #[test]
    fn examples_share_a_sequence_while_they_fit() {
        use Boundary::{Group, MicroBatch, Sequence, Step};
        assert_eq!(
            places(&batching(2, 2), Some(10), &[4, 6, 1, 9, 1, 10, 5, 5, 5, 6]),
            [Step, Group, Sequence, Group, MicroBatch, Sequence, Step, Group, Sequence, MicroBatch]
        );
        assert_eq!(
            places(&batching(2, 2), None, &[1; 6]),
            [Step, Sequence, MicroBatch, Sequence, Step, Sequence]
        );
    }

    proptest! {
        /// No sequence is longer than allowed, none is left that the next example would have fitted into, and every
        /// micro-batch and step but the last is full.
        #[test]
        fn packs_are_full_and_never_too_full(
            lengths in prop::collection::vec(1_usize..=50, 0..200),
            size in 50_usize..120, micro in 1_usize..4, accumulation in 1_usize..4,
        ) {
            let boundaries = places(&batching(micro, accumulation), Some(size), &lengths);
            let (mut tokens, mut sequences, mut micro_batches) = (0, 0, 0);
            for (position, (length, boundary)) in lengths.iter().zip(&boundaries).enumerate() {
                if *boundary == Boundary::Group {
                    tokens += length;
                } else {
                    prop_assert!(position == 0 || tokens + length > size);
                    tokens = *length;
                }
                prop_assert!(tokens <= size);
                match boundary {
                    Boundary::Group => {}
                    Boundary::Sequence => sequences += 1,
                    Boundary::MicroBatch | Boundary::Step => {
                        prop_assert!(position == 0 || sequences == micro);
                        sequences = 1;
                    }
                }
                match boundary {
                    Boundary::MicroBatch => micro_batches += 1,
                    Boundary::Step => {
                        prop_assert!(position == 0 || micro_batches == accumulation);
                        micro_batches = 1;
                    }
                    Boundary::Group | Boundary::Sequence => {}
                }
                prop_assert!(sequences <= micro && micro_batches <= accumulation);
            }
        }
    }
}
