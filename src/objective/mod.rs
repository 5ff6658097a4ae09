//! What is minimised.
//!
//! An objective returns a **sum** and the count it was taken over, never a mean. The training loop divides once, by the
//! count of the whole optimizer step, so that gradient accumulation cannot be wrong.

mod sft;

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;

use crate::data::batch::{Counts, MicroBatch};
use crate::model::Decoder;

/// What a run minimises.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Objective {
    /// Supervised fine-tuning: the negative log-likelihood of the supervised tokens, per token.
    #[default]
    Sft,
}

/// The loss of a micro-batch and the gradients of all that is above the last decoder layer.
#[derive(Clone, Debug)]
pub struct Differentiated<B: KernelBackend> {
    /// The summed loss, f32 `[1]`.
    pub value: Tensor<B, 1>,
    /// Its gradient with respect to the hidden states that leave the last layer, `[tokens, hidden]` in their dtype; `None`
    /// unless asked for.
    pub hidden: Option<Tensor<B, 2>>,
    /// Its gradient with respect to a trained head, `[vocabulary, hidden]`, f32, added to the sum of the micro-batches
    /// before; `None` where the head is frozen.
    pub head: Option<Tensor<B, 2>>,
}

/// A trained head and the gradients that were summed for it so far.
#[derive(Clone, Debug)]
pub struct TrainedHead<B: KernelBackend> {
    /// `[vocabulary, hidden]`, f32.
    pub weight: Tensor<B, 2>,
    /// Likewise; `None` before the first micro-batch.
    pub sum: Option<Tensor<B, 2>>,
}

impl Objective {
    /// What a sum of losses and their gradients is divided by, for a mean. At least 1.
    pub fn divisor(&self, counts: &Counts) -> u64 {
        match self {
            Self::Sft => counts.tokens,
        }
        .max(1)
    }

    /// The summed loss `[1]` (f32) of a micro-batch whose hidden states `[tokens, hidden]` leave the last decoder layer.
    pub fn loss<B: KernelBackend>(
        &self,
        decoder: &Decoder<B>,
        hidden: &Tensor<B, 2>,
        batch: &MicroBatch,
    ) -> Tensor<B, 1> {
        match self {
            Self::Sft => sft::with_frozen_head(decoder, hidden, &batch.targets, false).value,
        }
    }

    /// [`Self::loss`] and its gradients. `head`: the head, where it is trained; `wants_hidden`: whether anything below
    /// it is.
    pub fn differentiate<B: KernelBackend>(
        &self,
        decoder: &Decoder<B>,
        hidden: &Tensor<B, 2>,
        batch: &MicroBatch,
        head: Option<TrainedHead<B>>,
        wants_hidden: bool,
    ) -> Differentiated<B> {
        match (self, head) {
            (Self::Sft, Some(head)) => {
                let mut found = sft::with_trained_head(decoder, hidden, head, &batch.targets);
                found.hidden = found.hidden.filter(|_| wants_hidden);
                found
            }
            (Self::Sft, None) => sft::with_frozen_head(decoder, hidden, &batch.targets, wants_hidden),
        }
    }
}
