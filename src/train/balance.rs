//! The loss that spreads tokens over the experts of mixtures, as transformers computes it (`load_balancing_loss_func`, after
//! Switch Transformers, <https://arxiv.org/abs/2101.03961>):
//!
//! ```text
//! aux = E · Σₑ fₑ · Pₑ
//! ```
//!
//! over the rows of all mixtures, a token being a row of each: f of expert e is how often it was chosen, by row, and P its
//! mean probability. The choice is a constant of the gradient. Routers are frozen: what is trained is the hidden states that
//! they read. A micro-batch has a loss of its own, which joins its sum times what the sum is divided by.

use burn_tensor::{DType, Tensor, TensorData};
use tune_kernels::KernelBackend;

use crate::model::layers::choice::{Balance, Choice};

/// What the mixtures of a micro-batch chose so far.
pub(super) struct Counted<B: KernelBackend> {
    coefficient: f64,
    /// How often each expert was chosen.
    chosen: Vec<u64>,
    /// The probability of each, summed over rows.
    shares: Option<Tensor<B, 1>>,
    rows: u64,
}

impl<B: KernelBackend> Counted<B> {
    /// Nothing yet; `None` without a coefficient.
    pub(super) fn new(coefficient: f64) -> Option<Self> {
        (coefficient > 0.0).then(|| Self { coefficient, chosen: Vec::new(), shares: None, rows: 0 })
    }

    /// Adds the mixtures of a layer.
    pub(super) fn add(&mut self, choices: &[Choice<B>], tokens: usize) {
        for choice in choices {
            self.chosen.resize(choice.experts, 0);
            for expert in choice.chosen() {
                self.chosen[*expert as usize] += 1;
            }
            self.rows += tokens as u64;
            self.shares = match (self.shares.take(), choice.shares.clone()) {
                (Some(sum), Some(more)) => Some(sum + more),
                (sum, more) => sum.or(more),
            };
        }
    }

    /// The loss, f32 `[1]`, and its slopes, both times `count`; `None` without mixtures.
    pub(super) fn loss(self, count: f64) -> Option<(Tensor<B, 1>, Balance<B>)> {
        let Self { coefficient, chosen, shares, rows } = self;
        let shares = shares?;
        let factor = coefficient * count * chosen.len() as f64 / (rows as f64 * rows as f64);
        let slopes: Vec<f32> = chosen.iter().map(|chosen| (factor * *chosen as f64) as f32).collect();
        let experts = slopes.len();
        let slopes = Tensor::from_data(TensorData::new(slopes, [experts]), (&shares.device(), DType::F32));
        let loss = (shares * slopes.clone()).sum();
        Some((loss, Balance::Slopes(slopes)))
    }
}
