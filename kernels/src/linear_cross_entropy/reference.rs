//! The slow oracle of head and loss: all logits of a row, f32 in, f64 inside, f32 out.
//!
//! Everywhere `hidden` is `[tokens, width]`, `head` `[vocabulary, width]`, and a target of `None` is not supervised.

use super::Logits;

/// Head, targets, and what each row's loss is weighed by in a gradient.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// `[vocabulary, width]`.
    pub head: &'a [f32],
    /// One for each token id.
    pub bias: Option<&'a [f32]>,
    /// What is made of the products.
    pub logits: Logits,
    /// One for each token.
    pub targets: &'a [Option<usize>],
    /// One for each supervised row; `None`: all 1.
    pub weights: Option<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// Without bias and weights, the logits being the products.
    pub fn plain(head: &'a [f32], targets: &'a [Option<usize>]) -> Self {
        Self { head, bias: None, logits: Logits::PLAIN, targets, weights: None }
    }

    /// Of each supervised row: its number, its target and its weight.
    fn supervised(&self) -> impl Iterator<Item = (usize, usize, f64)> {
        let targets = self.targets.iter().enumerate();
        let supervised = targets.filter_map(|(row, target)| Some((row, (*target)?)));
        supervised.enumerate().map(|(index, (row, target))| {
            (row, target, self.weights.map_or(1.0, |weights| f64::from(weights[index])))
        })
    }
}

/// The loss of each supervised row.
pub fn row_losses(hidden: &[f32], rows: Rows<'_>, width: usize) -> Vec<f32> {
    let loss = |(row, target, _): (usize, usize, f64)| {
        let (logits, log_sum_exp) = logits(&hidden[row * width..][..width], rows);
        (log_sum_exp - logits[target].value) as f32
    };
    rows.supervised().map(loss).collect()
}

/// Σ weight · loss over the rows, and its gradients: of `hidden` and of `head`.
pub fn loss_and_gradients(hidden: &[f32], rows: Rows<'_>, width: usize) -> (f64, Vec<f32>, Vec<f32>) {
    let head = rows.head;
    let mut sum = 0.0;
    let (mut dhidden, mut dhead) = (vec![0.0f32; hidden.len()], vec![0.0f64; head.len()]);
    for (row, target, weight) in rows.supervised() {
        let hidden = &hidden[row * width..][..width];
        let (logits, log_sum_exp) = logits(hidden, rows);
        sum += weight * (log_sum_exp - logits[target].value);
        let mut slopes = vec![0.0f64; width];
        for (token, z) in logits.iter().enumerate() {
            let slope = (z.value - log_sum_exp).exp() - if token == target { 1.0 } else { 0.0 };
            let slope = weight * slope * z.slope;
            for i in 0..width {
                slopes[i] += slope * f64::from(head[token * width + i]);
                dhead[token * width + i] += slope * f64::from(hidden[i]);
            }
        }
        for (gradient, slope) in dhidden[row * width..].iter_mut().zip(slopes) {
            *gradient = slope as f32;
        }
    }
    (sum, dhidden, dhead.into_iter().map(|value| value as f32).collect())
}

/// One logit.
struct Logit {
    value: f64,
    /// Its derivative in the product of hidden state and head.
    slope: f64,
}

/// The logits of one row, and ln Σ exp of them.
fn logits(hidden: &[f32], rows: Rows<'_>) -> (Vec<Logit>, f64) {
    let Logits { scale, soft_cap } = rows.logits;
    let scale = f64::from(scale);
    let logit = |(token, row): (usize, &[f32])| {
        let product: f64 = row.iter().zip(hidden).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum();
        let value = scale * product + rows.bias.map_or(0.0, |bias| f64::from(bias[token]));
        match soft_cap.map(f64::from) {
            Some(cap) => {
                let t = (value / cap).tanh();
                Logit { value: cap * t, slope: scale * (1.0 - t * t) }
            }
            None => Logit { value, slope: scale },
        }
    };
    let logits: Vec<Logit> = rows.head.chunks_exact(hidden.len()).enumerate().map(logit).collect();
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, z| max.max(z.value));
    let sum: f64 = logits.iter().map(|z| (z.value - max).exp()).sum();
    (logits, max + sum.ln())
}
