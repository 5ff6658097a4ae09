//! What is minimised.
//!
//! An objective returns a **sum** and the count it was taken over, never a mean. The training loop divides once, by the
//! count of the whole optimizer step, so that gradient accumulation cannot be wrong.
//!
//! Supervised fine-tuning sums over tokens. The other objectives are functions of one number per document, its summed
//! negative log-likelihood: their gradient is that of supervised fine-tuning times a weight per document. Sums and weights
//! stay on the device.
#![doc = include_str!("preferences.md")]

mod dft;
mod documents;
pub mod feedback;
pub mod preference;
mod sft;
pub mod spec;
pub mod statistics;
#[cfg(test)]
mod tests;

use burn_tensor::Tensor;
use burn_tensor::backend::Backend;
use tune_kernels::KernelBackend;
use tune_kernels::linear_cross_entropy::trained::trained_linear_cross_entropy;
use tune_kernels::row_scale::row_scale;

use crate::data::batch::{Counts, MicroBatch};
use crate::model::Decoder;
use feedback::Kto;
use preference::Preference;

/// What a run minimises.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Objective {
    /// Supervised fine-tuning: the negative log-likelihood of the supervised tokens, per token.
    #[default]
    Sft,
    /// The same with each token's loss weighed by its own probability, through which no gradient flows (DFT: Wu et al.,
    /// <https://arxiv.org/abs/2508.05629>).
    Dft,
    /// A loss over pairs of answers, per pair.
    Preference(Preference),
    /// A loss over single answers that are wanted or not, per answer.
    Feedback(Kto),
}

/// What a micro-batch's documents are compared with: forward passes that come before its own.
#[derive(Clone, Debug)]
pub struct Comparison<B: Backend> {
    /// Each document's summed negative log-likelihood under the reference, f32 `[documents]`.
    pub reference: Option<Tensor<B, 1>>,
    /// The mean log-ratio to the reference of mismatched prompts and answers, f32 `[1]`.
    pub baseline: Option<Tensor<B, 1>>,
}

impl<B: Backend> Default for Comparison<B> {
    fn default() -> Self {
        Self { reference: None, baseline: None }
    }
}

/// The loss of a micro-batch.
#[derive(Clone, Debug)]
pub struct Summed<B: Backend> {
    /// The summed loss, f32 `[1]`.
    pub value: Tensor<B, 1>,
    /// Sums that are reported beside it, f32 `[statistics::LENGTH]`.
    pub statistics: Option<Tensor<B, 1>>,
}

/// The loss of a micro-batch and the gradients of all that is above the last decoder layer.
#[derive(Clone, Debug)]
pub struct Differentiated<B: Backend> {
    /// The loss.
    pub loss: Summed<B>,
    /// Its gradient with respect to the hidden states that leave the last layer, `[tokens, hidden]` in their dtype; `None`
    /// unless asked for.
    pub hidden: Option<Tensor<B, 2>>,
    /// Its gradient with respect to a trained head, `[vocabulary, hidden]`, f32, added to the sum of the micro-batches
    /// before; `None` where the head is frozen.
    pub head: Option<Tensor<B, 2>>,
}

/// A trained head and the gradients that were summed for it so far.
#[derive(Clone, Debug)]
pub struct TrainedHead<B: Backend> {
    /// `[vocabulary, hidden]`, f32.
    pub weight: Tensor<B, 2>,
    /// Likewise; `None` before the first micro-batch.
    pub sum: Option<Tensor<B, 2>>,
}

/// The documents of a micro-batch as a loss sees them, f32 `[documents]` each.
struct Answers<B: Backend> {
    /// Summed negative log-likelihood.
    nll: Tensor<B, 1>,
    /// Supervised tokens.
    lengths: Tensor<B, 1>,
    comparison: Comparison<B>,
}

impl<B: Backend> Answers<B> {
    /// The reference's sums; without a reference, those of the model itself.
    fn reference(&self) -> Tensor<B, 1> {
        self.comparison.reference.clone().unwrap_or_else(|| self.nll.clone())
    }
}

/// A loss over documents.
struct Judged<B: Backend> {
    loss: Summed<B>,
    /// dL/ds of each document's sum, f32 `[documents]`.
    weights: Tensor<B, 1>,
}

impl Objective {
    /// What a sum of losses and their gradients is divided by, for a mean. At least 1.
    pub fn divisor(&self, counts: &Counts) -> u64 {
        match self {
            Self::Sft | Self::Dft => counts.tokens,
            Self::Preference(_) | Self::Feedback(_) => counts.groups,
        }
        .max(1)
    }

    /// Whether it is a loss over pairs of answers, which share the tokens of their prompt.
    pub fn compares_answers(&self) -> bool {
        matches!(self, Self::Preference(_))
    }

    /// Whether documents are compared with a reference.
    pub fn needs_reference(&self) -> bool {
        match self {
            Self::Sft | Self::Dft => false,
            Self::Preference(preference) => preference.needs_reference(),
            Self::Feedback(_) => true,
        }
    }

    /// Whether mismatched prompts and answers are read too.
    pub fn needs_baseline(&self) -> bool {
        matches!(self, Self::Feedback(kto) if kto.needs_baseline())
    }

    /// The summed loss of a micro-batch whose hidden states `[tokens, hidden]` leave the last decoder layer.
    pub fn loss<B: KernelBackend>(
        &self,
        decoder: &Decoder<B>,
        hidden: &Tensor<B, 2>,
        batch: &MicroBatch,
        comparison: &Comparison<B>,
    ) -> Summed<B> {
        match self {
            Self::Sft => sft::with_frozen_head(decoder, hidden, &batch.targets, false).loss,
            Self::Dft => dft::with_frozen_head(decoder, hidden, &batch.targets, false).loss,
            Self::Preference(_) | Self::Feedback(_) => {
                let (nll, _) = documents::sums(decoder, &decoder.final_norm(hidden), batch, false);
                self.judge(nll, batch, comparison).loss
            }
        }
    }

    /// [`Self::loss`] and its gradients. `head`: the head, where it is trained; `wants_hidden`: whether anything below
    /// it is.
    pub fn differentiate<B: KernelBackend>(
        &self,
        decoder: &Decoder<B>,
        hidden: &Tensor<B, 2>,
        batch: &MicroBatch,
        comparison: &Comparison<B>,
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
            (Self::Dft, Some(head)) => dft::with_trained_head(decoder, hidden, head, &batch.targets),
            (Self::Dft, None) => dft::with_frozen_head(decoder, hidden, &batch.targets, wants_hidden),
            (Self::Preference(_) | Self::Feedback(_), None) => {
                let normed = decoder.final_norm(hidden);
                let (nll, gradient) = documents::sums(decoder, &normed, batch, wants_hidden);
                drop(normed);
                let Judged { loss, weights } = self.judge(nll, batch, comparison);
                let gradient = gradient.map(|gradient| {
                    let gradient = row_scale(gradient, &documents::over_tokens(&weights, batch));
                    decoder.final_norm_backward(hidden, gradient)
                });
                Differentiated { loss, hidden: gradient, head: None }
            }
            // The gradient of the head is summed over rows, whose weights are known only once all losses are: a first
            // pass over the head gives the losses, a second one the gradients.
            (Self::Preference(_) | Self::Feedback(_), Some(TrainedHead { weight, sum })) => {
                let normed = decoder.final_norm(hidden);
                let (nll, _) = documents::sums(decoder, &normed, batch, false);
                let Judged { loss, weights } = self.judge(nll, batch, comparison);
                let weights = documents::over_rows(&weights, batch);
                let found = trained_linear_cross_entropy(
                    &normed,
                    &weight,
                    decoder.spec().logits,
                    &batch.targets,
                    Some(&weights),
                    sum,
                );
                drop(normed);
                let gradient = wants_hidden.then(|| decoder.final_norm_backward(hidden, found.hidden));
                Differentiated { loss, hidden: gradient, head: Some(found.head) }
            }
        }
    }

    fn judge<B: Backend>(
        &self,
        nll: Tensor<B, 1>,
        batch: &MicroBatch,
        comparison: &Comparison<B>,
    ) -> Judged<B> {
        let lengths = documents::lengths(batch, &nll.device());
        let answers = Answers { nll, lengths, comparison: comparison.clone() };
        match self {
            Self::Preference(preference) => preference.judge(&answers),
            Self::Feedback(kto) => kto.judge(&answers, &batch.sides),
            Self::Sft | Self::Dft => Judged {
                loss: Summed { value: answers.nll.clone().sum(), statistics: None },
                weights: answers.nll.ones_like(),
            },
        }
    }
}

/// The summed negative log-likelihood of each document, f32 `[documents]`.
pub fn document_sums<B: KernelBackend>(
    decoder: &Decoder<B>,
    hidden: &Tensor<B, 2>,
    batch: &MicroBatch,
) -> Tensor<B, 1> {
    documents::sums(decoder, &decoder.final_norm(hidden), batch, false).0
}
