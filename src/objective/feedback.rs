//! Losses over single answers that are wanted or not: KTO and APO's unpaired form.
//!
//! With `l = r − s` the log-ratio of an answer's likelihood to the reference's, `y` 1 for a wanted answer and −1 for an
//! unwanted one, `w` the weight of its kind and `z` a baseline:
//!
//! ```text
//! L = w (1 − σ(y β (l − z)))
//! ```
//!
//! KTO's `z` is the mean log-ratio of each prompt with the answer of another row of the micro-batch, at least 0, and no
//! gradient flows through it. In `apo-zero-unpaired` it is 0.
//!
//! KTO: Ethayarajh et al. (<https://arxiv.org/abs/2402.01306>); APO: D'Oosterlinck et al.
//! (<https://arxiv.org/abs/2408.06266>).

use burn_tensor::activation::sigmoid;
use burn_tensor::backend::Backend;
use burn_tensor::{Tensor, TensorData};

use super::statistics::Statistics;
use super::{Answers, Judged, Summed};
use crate::data::sequence::Side;

/// What `[objective.kto]` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kto {
    /// How strongly the model is held to the reference.
    pub beta: f64,
    /// The baseline.
    pub loss: KtoLoss,
    /// Weight of wanted answers.
    pub wanted_weight: f64,
    /// Weight of unwanted answers.
    pub unwanted_weight: f64,
}

/// The baseline of log-ratios.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KtoLoss {
    /// Estimated from the micro-batch.
    Kto,
    /// Zero.
    ApoZeroUnpaired,
}

impl Kto {
    /// Whether the baseline is estimated, by a forward pass over each prompt with another row's answer.
    pub fn needs_baseline(&self) -> bool {
        self.loss == KtoLoss::Kto
    }

    /// The summed loss of the answers, the weight of each and the sums that are reported.
    pub(super) fn judge<B: Backend>(&self, answers: &Answers<B>, sides: &[Side]) -> Judged<B> {
        let Self { beta, wanted_weight, unwanted_weight, .. } = *self;
        let device = answers.nll.device();
        let column = |of: &dyn Fn(bool) -> f64| {
            let values: Vec<f32> = sides.iter().map(|side| of(*side == Side::Wanted) as f32).collect();
            Tensor::<B, 1>::from_data(TensorData::new(values, [sides.len()]), &device)
        };
        let wanted = column(&|wanted| if wanted { 1.0 } else { 0.0 });
        let sign = column(&|wanted| if wanted { 1.0 } else { -1.0 });
        let weight = column(&|wanted| if wanted { wanted_weight } else { unwanted_weight });
        let ratios = answers.reference() - answers.nll.clone();
        let above = match &answers.comparison.baseline {
            Some(baseline) => ratios.clone() - baseline.clone().clamp_min(0.0),
            None => ratios.clone(),
        };
        let x = above * sign.clone() * beta;
        let (right, wrong) = (sigmoid(x.clone()), sigmoid(-x));
        let losses = weight.clone() * wrong.clone();
        let weights = weight * sign.clone() * right * wrong * beta;
        let rewards = ratios * beta;
        let is_right = (rewards.clone() * sign).greater_elem(0.0);
        let log_probabilities = -answers.nll.clone();
        let both = |values: Tensor<B, 1>| {
            let chosen = (values.clone() * wanted.clone()).sum();
            (chosen.clone(), values.sum() - chosen)
        };
        let (reward_wanted, reward_unwanted) = both(rewards.clone());
        let (logp_wanted, logp_unwanted) = both(log_probabilities);
        let right = rewards.zeros_like().mask_fill(is_right, 1.0).sum();
        let sums = [reward_wanted, reward_unwanted, logp_wanted, logp_unwanted, right];
        let statistics = Some(Statistics::on_device(sums));
        Judged { loss: Summed { value: losses.sum(), statistics }, weights }
    }
}
