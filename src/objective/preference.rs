//! Losses over pairs of answers to one prompt, as functions of one number per answer.
//!
//! With `s` the summed negative log-likelihood of an answer's `n` tokens under the model, `r` the same under the
//! reference (the base with the adapter as the run began), `c` the chosen answer and `r` the rejected one, σ the logistic
//! function:
//!
//! ```text
//! DPO      h = (r_c − s_c) − (r_r − s_r)              sigmoid   −(1 − ε) ln σ(βh) − ε ln σ(−βh)
//!                                                     robust    (−(1 − ε) ln σ(βh) + ε ln σ(−βh)) / (1 − 2ε)
//!          (each r − s over its n where               hinge     max(0, 1 − βh)
//!          `length_normalized`, and in ipo)           ipo       (h − 1 / 2β)²
//!          + rpo_alpha · s_c / n_c
//! ORPO     s_c / n_c − β ln σ(o_c − o_r)              o = p̄ − ln(1 − exp p̄),  p̄ = −s / n
//! SimPO    −ln σ(β (p̄_c − p̄_r) − γ)
//! ```
//!
//! The gradient of each hidden row is that of supervised fine-tuning times dL/ds of its answer: the *weight*.
//!
//! DPO: Rafailov et al. (<https://arxiv.org/abs/2305.18290>); IPO: Azar et al. (<https://arxiv.org/abs/2310.12036>);
//! robust: Chowdhury et al. (<https://arxiv.org/abs/2403.00409>); hinge: Zhao et al., SLiC
//! (<https://arxiv.org/abs/2305.10425>); `rpo_alpha`: Pang et al. (<https://arxiv.org/abs/2404.19733>); ORPO: Hong et al.
//! (<https://arxiv.org/abs/2403.07691>); SimPO: Meng et al. (<https://arxiv.org/abs/2405.14734>).

use burn_tensor::Tensor;
use burn_tensor::activation::{log_sigmoid, sigmoid};
use burn_tensor::backend::Backend;

use super::statistics::Statistics;
use super::{Answers, Judged, Summed};

/// A loss over pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Preference {
    /// Direct preference optimization and its kin, against a reference.
    Dpo(Dpo),
    /// Odds-ratio preference optimization: supervised fine-tuning and preference in one, without a reference.
    Orpo {
        /// Weight of the odds-ratio term.
        beta: f64,
    },
    /// Simple preference optimization: mean log-probabilities and a margin, without a reference.
    SimPo {
        /// Scale of the rewards.
        beta: f64,
        /// The margin by which the chosen reward should exceed the rejected one.
        gamma: f64,
    },
}

/// What `[objective.dpo]` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dpo {
    /// How strongly the model is held to the reference.
    pub beta: f64,
    /// The loss as a function of the margin.
    pub loss: DpoLoss,
    /// ε: the share of pairs that are assumed to be labelled the wrong way round.
    pub label_smoothing: f64,
    /// Weight of the chosen answer's mean negative log-likelihood; 0: none.
    pub rpo_alpha: f64,
    /// Log-ratios per token instead of per answer.
    pub length_normalized: bool,
}

/// The loss as a function of the margin between the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpoLoss {
    /// DPO's own.
    Sigmoid,
    /// Identity preference optimization.
    Ipo,
    /// SLiC's hinge.
    Hinge,
    /// Provably robust to a known share of wrong labels.
    Robust,
}

/// One number for the chosen and one for the rejected answer of each pair, `[pairs]` each.
#[derive(Clone, Debug)]
struct Sides<B: Backend> {
    chosen: Tensor<B, 1>,
    rejected: Tensor<B, 1>,
}

impl<B: Backend> Sides<B> {
    /// Of `[answers]`: chosen and rejected in turn.
    fn of(answers: &Tensor<B, 1>) -> Self {
        let pairs = answers.dims()[0] / 2;
        let table = answers.clone().reshape([pairs, 2]);
        let side = |side: usize| table.clone().slice([0..pairs, side..side + 1]).reshape([pairs]);
        Self { chosen: side(0), rejected: side(1) }
    }

    /// Back to `[answers]`.
    fn interleaved(self) -> Tensor<B, 1> {
        let pairs = self.chosen.dims()[0];
        Tensor::stack::<2>(vec![self.chosen, self.rejected], 1).reshape([2 * pairs])
    }

    fn map(&self, apply: impl Fn(Tensor<B, 1>) -> Tensor<B, 1>) -> Self {
        Self { chosen: apply(self.chosen.clone()), rejected: apply(self.rejected.clone()) }
    }

    fn zip(&self, other: &Self, apply: impl Fn(Tensor<B, 1>, Tensor<B, 1>) -> Tensor<B, 1>) -> Self {
        Self {
            chosen: apply(self.chosen.clone(), other.chosen.clone()),
            rejected: apply(self.rejected.clone(), other.rejected.clone()),
        }
    }

    fn margin(&self) -> Tensor<B, 1> {
        self.chosen.clone() - self.rejected.clone()
    }
}

impl Preference {
    /// Whether the loss compares with a reference.
    pub fn needs_reference(&self) -> bool {
        matches!(self, Self::Dpo(_))
    }

    /// The summed loss of the pairs, the weight of each answer and the sums that are reported.
    pub(super) fn judge<B: Backend>(&self, answers: &Answers<B>) -> Judged<B> {
        let nll = Sides::of(&answers.nll);
        let lengths = Sides::of(&answers.lengths);
        let (losses, weights, rewards) = match self {
            Self::Dpo(dpo) => dpo.judge(&nll, &lengths, &Sides::of(&answers.reference())),
            Self::Orpo { beta } => orpo(*beta, &nll, &lengths),
            Self::SimPo { beta, gamma } => simpo(*beta, *gamma, &nll, &lengths),
        };
        let is_right = rewards.chosen.clone().greater(rewards.rejected.clone());
        let sums = [
            rewards.chosen.clone().sum(),
            rewards.rejected.clone().sum(),
            nll.chosen.clone().sum().neg(),
            nll.rejected.clone().sum().neg(),
            rewards.chosen.zeros_like().mask_fill(is_right, 1.0).sum(),
        ];
        let statistics = Some(Statistics::on_device(sums));
        Judged { loss: Summed { value: losses.sum(), statistics }, weights: weights.interleaved() }
    }
}

/// Losses `[pairs]`, dL/ds of each answer, rewards.
type Judgement<B> = (Tensor<B, 1>, Sides<B>, Sides<B>);

impl Dpo {
    fn judge<B: Backend>(&self, nll: &Sides<B>, lengths: &Sides<B>, reference: &Sides<B>) -> Judgement<B> {
        let Self { beta, loss, label_smoothing: epsilon, rpo_alpha, length_normalized } = *self;
        let per_token = length_normalized || loss == DpoLoss::Ipo;
        let summed = reference.zip(nll, |reference, nll| reference - nll);
        let ratios = if per_token { summed.zip(lengths, |ratio, length| ratio / length) } else { summed };
        let margin = ratios.margin();
        let x = margin.clone() * beta;
        // Losses, and their slopes by the margin.
        let (mut losses, slopes) = match loss {
            DpoLoss::Sigmoid => (
                log_sigmoid(x.clone()) * (epsilon - 1.0) - log_sigmoid(-x.clone()) * epsilon,
                (sigmoid(-x.clone()) * (epsilon - 1.0) + sigmoid(x) * epsilon) * beta,
            ),
            DpoLoss::Robust => {
                let scale = 1.0 / (1.0 - 2.0 * epsilon);
                (
                    (log_sigmoid(x.clone()) * (epsilon - 1.0) + log_sigmoid(-x.clone()) * epsilon) * scale,
                    (sigmoid(-x.clone()) * (epsilon - 1.0) - sigmoid(x) * epsilon) * (scale * beta),
                )
            }
            DpoLoss::Hinge => {
                let missing = (-x + 1.0).clamp_min(0.0);
                let is_missing = missing.clone().greater_elem(0.0);
                let slopes = missing.zeros_like().mask_fill(is_missing, -beta);
                (missing, slopes)
            }
            DpoLoss::Ipo => {
                let distance = margin - 1.0 / (2.0 * beta);
                (distance.clone() * distance.clone(), distance * 2.0)
            }
        };
        let mut weights = Sides { chosen: -slopes.clone(), rejected: slopes };
        if per_token {
            weights = weights.zip(lengths, |weight, length| weight / length);
        }
        if rpo_alpha != 0.0 {
            let share = lengths.chosen.clone().recip() * rpo_alpha;
            losses = losses + nll.chosen.clone() * share.clone();
            weights.chosen = weights.chosen + share;
        }
        (losses, weights, ratios.map(|ratio| ratio * beta))
    }
}

/// −s / n.
fn mean_log_probabilities<B: Backend>(nll: &Sides<B>, lengths: &Sides<B>) -> Sides<B> {
    nll.zip(lengths, |nll, length| -nll / length)
}

fn orpo<B: Backend>(beta: f64, nll: &Sides<B>, lengths: &Sides<B>) -> Judgement<B> {
    let means = mean_log_probabilities(nll, lengths);
    // 1 − exp p̄ = −2t / (1 − t) with t = tanh(p̄ / 2): exact where p̄ is close to 0, and never 0.
    let complements = means.map(|mean| {
        let t = (mean.clamp_max(-1e-7) * 0.5).tanh();
        t.clone() * -2.0 / (-t + 1.0)
    });
    let odds = means.zip(&complements, |mean, complement| mean - complement.log());
    let margin = odds.margin();
    let losses = -means.chosen.clone() - log_sigmoid(margin.clone()) * beta;
    let slopes = sigmoid(-margin) * beta;
    let by_odds = complements.zip(lengths, |complement, length| (complement * length).recip());
    let weights = Sides {
        chosen: lengths.chosen.clone().recip() + slopes.clone() * by_odds.chosen,
        rejected: -slopes * by_odds.rejected,
    };
    (losses, weights, means.map(|mean| mean * beta))
}

fn simpo<B: Backend>(beta: f64, gamma: f64, nll: &Sides<B>, lengths: &Sides<B>) -> Judgement<B> {
    let rewards = mean_log_probabilities(nll, lengths).map(|mean| mean * beta);
    let x = rewards.margin() - gamma;
    let slopes = sigmoid(-x.clone()) * beta;
    let weights = Sides {
        chosen: slopes.clone() / lengths.chosen.clone(),
        rejected: -slopes / lengths.rejected.clone(),
    };
    (-log_sigmoid(x), weights, rewards)
}
