//! The slow oracle of the gated delta rule: the recurrence itself, token by token, f32 in, f64 inside, f32 out.

use super::{DeltaHeads, EPSILON};
use crate::attention::DocumentOffsets;

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// `[tokens, queries | keys | values]`.
    pub mixed: &'a [f32],
    /// `[tokens, values]`.
    pub decay: &'a [f32],
    /// `[tokens, values]`.
    pub write: &'a [f32],
    /// `[values]`.
    pub log_rate: &'a [f32],
    /// `[values]`.
    pub bias: &'a [f32],
    /// Numbers and widths of heads.
    pub heads: DeltaHeads,
    /// Where documents begin and end.
    pub documents: &'a DocumentOffsets,
}

/// Gradients of `mixed`, `decay` and `write`.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Like `mixed`.
    pub mixed: Vec<f32>,
    /// Like `decay`.
    pub decay: Vec<f32>,
    /// Like `write`.
    pub write: Vec<f32>,
}

/// What a token brings to a head.
struct Token {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    /// exp(g).
    kept: f64,
    /// d g / d decay.
    slope: f64,
    beta: f64,
}

impl Rule<'_> {
    fn row(&self, token: usize, place: usize, width: usize) -> Vec<f64> {
        let start = token * self.heads.widths().iter().sum::<usize>() + place;
        self.mixed[start..start + width].iter().map(|x| f64::from(*x)).collect()
    }

    fn token(&self, token: usize, head: usize) -> Token {
        let [query, key, value] = self.heads.places(head);
        let DeltaHeads { key_dim, value_dim, values, .. } = self.heads;
        let rate = f64::from(self.log_rate[head]).exp();
        let x = f64::from(self.decay[token * values + head]) + f64::from(self.bias[head]);
        let query = normalised(&self.row(token, query, key_dim)).0;
        Token {
            q: query.into_iter().map(|x| x / (key_dim as f64).sqrt()).collect(),
            k: normalised(&self.row(token, key, key_dim)).0,
            v: self.row(token, value, value_dim),
            kept: (-rate * (1.0 + x.exp()).ln()).exp(),
            slope: -rate / (1.0 + (-x).exp()),
            beta: 1.0 / (1.0 + (-f64::from(self.write[token * values + head])).exp()),
        }
    }
}

/// x / √(Σ x² + ε), and the factor.
fn normalised(x: &[f64]) -> (Vec<f64>, f64) {
    let r = 1.0 / (dot(x, x) + f64::from(EPSILON)).sqrt();
    (x.iter().map(|x| x * r).collect(), r)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Sᵀ x.
fn read(state: &[f64], x: &[f64], width: usize) -> Vec<f64> {
    (0..width).map(|j| x.iter().enumerate().map(|(i, x)| x * state[i * width + j]).sum()).collect()
}

/// S ← decayed S; returns Δ after writing it.
fn step(state: &mut [f64], token: &Token) -> Vec<f64> {
    let width = token.v.len();
    state.iter_mut().for_each(|s| *s *= token.kept);
    let known = read(state, &token.k, width);
    let delta: Vec<f64> = token.v.iter().zip(known).map(|(v, known)| token.beta * (v - known)).collect();
    for (row, k) in state.chunks_exact_mut(width).zip(&token.k) {
        row.iter_mut().zip(&delta).for_each(|(s, delta)| *s += k * delta);
    }
    delta
}

/// The outputs `[tokens, values · value_dim]`, and the states behind the last document, `[values, key_dim, value_dim]`,
/// where the first began with `state`.
pub fn forward(rule: Rule<'_>, state: Option<&[f32]>) -> (Vec<f32>, Vec<f32>) {
    let DeltaHeads { values, key_dim, value_dim, .. } = rule.heads;
    let size = key_dim * value_dim;
    let mut y = vec![0.0; rule.documents.queries() * values * value_dim];
    let mut last = Vec::new();
    for head in 0..values {
        let mut own = vec![0.0; size];
        for (index, (document, _)) in rule.documents.documents().enumerate() {
            own = match (index, state) {
                (0, Some(state)) => state[head * size..][..size].iter().map(|s| f64::from(*s)).collect(),
                _ => vec![0.0; size],
            };
            for token in document {
                let input = rule.token(token, head);
                step(&mut own, &input);
                let output = read(&own, &input.q, value_dim);
                for (y, output) in y[(token * values + head) * value_dim..].iter_mut().zip(output) {
                    *y = output as f32;
                }
            }
        }
        last.extend(own.into_iter().map(|s| s as f32));
    }
    (y, last)
}

/// Gradients for upstream `dy`, like the output.
pub fn backward(rule: Rule<'_>, dy: &[f32]) -> Gradients {
    let DeltaHeads { values, key_dim, value_dim, .. } = rule.heads;
    let width: usize = rule.heads.widths().iter().sum();
    let size = key_dim * value_dim;
    let mut mixed = vec![0.0f64; rule.mixed.len()];
    let (mut decay, mut write) = (vec![0.0f32; rule.decay.len()], vec![0.0f32; rule.write.len()]);
    for head in 0..values {
        let [query, key, value] = rule.heads.places(head);
        for (document, _) in rule.documents.documents() {
            let mut states = vec![vec![0.0f64; size]];
            let mut deltas = Vec::new();
            for token in document.clone() {
                let mut state = states.last().cloned().unwrap_or_default();
                deltas.push(step(&mut state, &rule.token(token, head)));
                states.push(state);
            }
            let mut slope = vec![0.0f64; size];
            for (index, token) in document.clone().enumerate().rev() {
                let input = rule.token(token, head);
                let (state, delta) = (&states[index + 1], &deltas[index]);
                let before: Vec<f64> = states[index].iter().map(|s| s * input.kept).collect();
                let start = (token * values + head) * value_dim;
                let dy: Vec<f64> = dy[start..start + value_dim].iter().map(|x| f64::from(*x)).collect();
                let dq: Vec<f64> = state.chunks_exact(value_dim).map(|row| dot(row, &dy)).collect();
                for (row, q) in slope.chunks_exact_mut(value_dim).zip(&input.q) {
                    row.iter_mut().zip(&dy).for_each(|(s, dy)| *s += q * dy);
                }
                let ddelta = read(&slope, &input.k, value_dim);
                let mut dk: Vec<f64> = slope.chunks_exact(value_dim).map(|row| dot(row, delta)).collect();
                let known = read(&before, &input.k, value_dim);
                let missing: Vec<f64> = input.v.iter().zip(known).map(|(v, known)| v - known).collect();
                let dbeta = dot(&ddelta, &missing);
                for ((dk, row), (slope, k)) in dk
                    .iter_mut()
                    .zip(before.chunks_exact(value_dim))
                    .zip(slope.chunks_exact_mut(value_dim).zip(&input.k))
                {
                    *dk -= input.beta * dot(row, &ddelta);
                    slope.iter_mut().zip(&ddelta).for_each(|(s, d)| *s -= input.beta * k * d);
                }
                let dg = dot(&slope, &before);
                slope.iter_mut().for_each(|s| *s *= input.kept);
                decay[token * values + head] = (dg * input.slope) as f32;
                write[token * values + head] = (dbeta * input.beta * (1.0 - input.beta)) as f32;
                let scale = 1.0 / (key_dim as f64).sqrt();
                let dq: Vec<f64> = dq.into_iter().map(|x| x * scale).collect();
                for (place, gradient) in [(query, dq), (key, dk)] {
                    let (unit, r) = normalised(&rule.row(token, place, key_dim));
                    let along = dot(&unit, &gradient);
                    let out = mixed[token * width + place..].iter_mut();
                    for (out, (unit, gradient)) in out.zip(unit.iter().zip(gradient)) {
                        *out += r * (gradient - unit * along);
                    }
                }
                for (out, ddelta) in mixed[token * width + value..].iter_mut().zip(&ddelta) {
                    *out += input.beta * ddelta;
                }
            }
        }
    }
    Gradients { mixed: mixed.into_iter().map(|x| x as f32).collect(), decay, write }
}
