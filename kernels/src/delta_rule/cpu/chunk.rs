//! One chunk of one head: its queries, keys, values and gates in f32, and the step of the recurrence over it.

use std::ops::Range;

use super::products::{Left, Right, multiply, multiply_part, scale, scaled, solve};
use super::task::{Inputs, numbers};
use crate::cpu::pool::Buffer;
use crate::cpu::scalar::Scalar;
use crate::cpu::{math, vectorized};
use crate::delta_rule::sizes::{CHUNK, DeltaHeads, EPSILON};

/// A chunk's inputs.
pub(super) struct Chunk {
    heads: DeltaHeads,
    pub(super) rows: usize,
    /// Keys, then queries, `[2 · rows, key_dim]`: normalised, queries scaled.
    pub(super) keys_queries: Buffer<f32>,
    /// `[rows, value_dim]`.
    pub(super) values: Buffer<f32>,
    /// G: the running sum of ln decay.
    pub(super) log_decay: [f32; CHUNK],
    /// exp(G).
    pub(super) decay: [f32; CHUNK],
    /// exp(G_last − G).
    pub(super) rest: [f32; CHUNK],
    /// β.
    pub(super) beta: [f32; CHUNK],
    /// d g / d decay.
    pub(super) slope: [f32; CHUNK],
}

impl Chunk {
    pub(super) fn new(heads: DeltaHeads) -> Self {
        Self {
            heads,
            rows: 0,
            keys_queries: numbers(2 * CHUNK * heads.key_dim),
            values: numbers(CHUNK * heads.value_dim),
            log_decay: [0.0; CHUNK],
            decay: [0.0; CHUNK],
            rest: [0.0; CHUNK],
            beta: [0.0; CHUNK],
            slope: [0.0; CHUNK],
        }
    }

    /// The inputs of value head `head` for the tokens `range`.
    pub(super) fn load<T: Scalar>(&mut self, inputs: &Inputs<'_, T>, range: Range<usize>, head: usize) {
        let DeltaHeads { key_dim, value_dim, values, .. } = self.heads;
        self.rows = range.len();
        let [query, key, value] = self.heads.places(head);
        let rows = self.rows * key_dim;
        let (keys, queries) = self.keys_queries.split_at_mut(rows);
        let scale = 1.0 / (key_dim as f32).sqrt();
        let each = keys
            .chunks_exact_mut(key_dim)
            .zip(queries.chunks_exact_mut(key_dim))
            .zip(self.values.chunks_exact_mut(value_dim));
        for (token, ((k, q), v)) in range.clone().zip(each) {
            let row = &inputs.mixed[token * inputs.width..][..inputs.width];
            normalise::<T>(&row[key..key + key_dim], 1.0, k);
            normalise::<T>(&row[query..query + key_dim], scale, q);
            crate::cpu::scalar::widen(&row[value..value + value_dim], v);
        }
        let rate = inputs.log_rate[head].exp();
        let mut sum = 0.0;
        for (index, token) in range.enumerate() {
            let x = inputs.decay[token * values + head].to_f32() + inputs.bias[head];
            sum -= rate * softplus(x);
            self.log_decay[index] = sum;
            self.decay[index] = math::exp(sum);
            self.slope[index] = -rate * math::sigmoid(x);
            self.beta[index] = math::sigmoid(inputs.write[token * values + head].to_f32());
        }
        for index in 0..self.rows {
            self.rest[index] = math::exp(sum - self.log_decay[index]);
        }
    }

    pub(super) fn keys(&self) -> &[f32] {
        &self.keys_queries[..self.rows * self.heads.key_dim]
    }

    pub(super) fn queries(&self) -> &[f32] {
        &self.keys_queries[self.rows * self.heads.key_dim..][..self.rows * self.heads.key_dim]
    }

    /// exp(G_last).
    pub(super) fn last_decay(&self) -> f32 {
        self.decay[self.rows - 1]
    }
}

/// The recurrence of one head, and its scratch.
pub(super) struct Recurrence {
    heads: DeltaHeads,
    /// Whether the state is still zero.
    is_zero: bool,
    keys_queries: Left,
    left: Left,
    right: Right,
    deltas: Right,
    /// A, then P, `[2 · rows, rows]`.
    pub(super) scores: Buffer<f32>,
    /// What the state knows of keys, then of queries, `[2 · rows, value_dim]`.
    known: Buffer<f32>,
    /// Δ, `[rows, value_dim]`.
    pub(super) delta: Buffer<f32>,
    /// Y, alike.
    pub(super) output: Buffer<f32>,
    /// exp(G_last − G) K̂.
    fading: Buffer<f32>,
}

impl Recurrence {
    pub(super) fn new(heads: DeltaHeads, is_zero: bool) -> Self {
        let rows = CHUNK * heads.value_dim;
        Self {
            heads,
            is_zero,
            keys_queries: Left::new(),
            left: Left::new(),
            right: Right::new(),
            deltas: Right::new(),
            scores: numbers(2 * CHUNK * CHUNK),
            known: numbers(2 * rows),
            delta: numbers(rows),
            output: numbers(rows),
            fading: numbers(CHUNK * heads.key_dim),
        }
    }

    /// Y of a chunk, and the state behind it.
    pub(super) fn forward(&mut self, chunk: &mut Chunk, state: &mut [f32]) {
        let DeltaHeads { key_dim, value_dim, .. } = self.heads;
        if chunk.rows == 1 {
            self.is_zero = false;
            return one(chunk, state, &mut self.output);
        }
        let rows = chunk.rows;
        self.keys_queries.plain(&chunk.keys_queries, 2 * rows, key_dim);
        self.scores(chunk, true);
        self.known(state);
        self.deltas(chunk);
        let size = rows * value_dim;
        let output = &mut self.output[..size];
        match self.is_zero {
            true => output.fill(0.0),
            false => {
                let known = self.known[size..2 * size].chunks_exact(value_dim);
                for ((output, known), decay) in output.chunks_exact_mut(value_dim).zip(known).zip(chunk.decay)
                {
                    scaled(known, decay, output);
                }
            }
        }
        self.deltas.plain(&self.delta, rows, value_dim);
        self.left.plain(&self.scores[rows * rows..], rows, rows);
        multiply_part(&self.left, &self.deltas, output, true, |tile| (value_dim, 0..tile.end));
        self.advance(chunk, state);
    }

    /// Δ and A of a chunk, and the state behind it.
    pub(super) fn state_alone(&mut self, chunk: &Chunk, state: &mut [f32]) {
        let DeltaHeads { key_dim, value_dim, .. } = self.heads;
        self.keys_queries.plain(chunk.keys(), chunk.rows, key_dim);
        self.scores(chunk, false);
        self.known(state);
        self.deltas(chunk);
        self.deltas.plain(&self.delta, chunk.rows, value_dim);
        self.advance(chunk, state);
    }

    /// A, and P if wanted, from the packed keys and queries.
    fn scores(&mut self, chunk: &Chunk, wants_p: bool) {
        let rows = chunk.rows;
        self.right.transposed(chunk.keys(), self.heads.key_dim, rows);
        multiply_part(&self.keys_queries, &self.right, &mut self.scores, false, |tile| {
            // Rows of A, then rows of P: up to the diagonal.
            let last = match (tile.end <= rows, tile.start >= rows) {
                (true, _) => tile.end,
                (_, true) => tile.end - rows,
                _ => rows,
            };
            (last, 0..self.heads.key_dim)
        });
        let mut decays = [0.0; CHUNK];
        for row in 0..rows {
            let decays = &mut decays[..rows];
            decays_at(&chunk.log_decay, row, decays);
            mask(&mut self.scores[row * rows..][..rows], &decays[..row], chunk.beta[row]);
            if wants_p {
                mask(&mut self.scores[(rows + row) * rows..][..rows], &decays[..=row], 1.0);
            }
        }
    }

    /// The packed keys and queries read from the state.
    fn known(&mut self, state: &[f32]) {
        if !self.is_zero {
            self.right.plain(state, self.heads.key_dim, self.heads.value_dim);
            multiply(&self.keys_queries, &self.right, &mut self.known, false);
        }
    }

    /// Δ.
    fn deltas(&mut self, chunk: &Chunk) {
        let width = self.heads.value_dim;
        for row in 0..chunk.rows {
            let (values, delta) =
                (&chunk.values[row * width..][..width], &mut self.delta[row * width..][..width]);
            match self.is_zero {
                true => scaled(values, chunk.beta[row], delta),
                false => {
                    let known = &self.known[row * width..][..width];
                    missing(values, known, chunk.decay[row], chunk.beta[row], delta);
                }
            }
        }
        solve(&self.scores, chunk.rows, &mut self.delta, width);
    }

    /// The state behind the chunk, from the packed Δ.
    fn advance(&mut self, chunk: &Chunk, state: &mut [f32]) {
        let DeltaHeads { key_dim, value_dim, .. } = self.heads;
        fade(chunk, key_dim, &mut self.fading);
        if !self.is_zero {
            scale(state, chunk.last_decay());
        }
        self.is_zero = false;
        self.left.transposed(&self.fading, key_dim, chunk.rows);
        multiply(&self.left, &self.deltas, &mut state[..key_dim * value_dim], true);
    }
}

/// exp(G_last − G) K̂.
pub(super) fn fade(chunk: &Chunk, key_dim: usize, out: &mut [f32]) {
    let rows = chunk.keys().chunks_exact(key_dim).zip(out.chunks_exact_mut(key_dim));
    for ((key, out), rest) in rows.zip(chunk.rest) {
        scaled(key, rest, out);
    }
}

/// The recurrence itself, for a single token.
fn one(chunk: &Chunk, state: &mut [f32], output: &mut [f32]) {
    let width = chunk.heads.value_dim;
    let output = &mut output[..width];
    output.fill(0.0);
    step(chunk.keys(), chunk.queries(), &chunk.values[..width], chunk.decay[0], chunk.beta[0], state, output);
}

fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

vectorized! {
    /// `out = factor · x / √(Σ x² + ε)`.
    fn normalise<T: Scalar>(x: &[T], factor: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x.to_f32();
        }
        let r = factor / (math::dot(out, out) + EPSILON).sqrt();
        for out in out {
            *out *= r;
        }
    }

    /// exp(G[row] − G[s]) for s up to the row.
    pub(super) fn decays_at(log_decay: &[f32], row: usize, out: &mut [f32]) {
        let own = log_decay[row];
        for (out, other) in out[..=row].iter_mut().zip(log_decay) {
            *out = math::exp(own - other);
        }
    }

    /// Multiplies a row of scores by its decays and a factor; what has no decay becomes zero.
    pub(super) fn mask(scores: &mut [f32], decays: &[f32], factor: f32) {
        let (kept, rest) = scores.split_at_mut(decays.len());
        for (score, decay) in kept.iter_mut().zip(decays) {
            *score *= decay * factor;
        }
        rest.fill(0.0);
    }

    /// β (v − decay · known).
    fn missing(values: &[f32], known: &[f32], decay: f32, beta: f32, out: &mut [f32]) {
        for ((out, value), known) in out.iter_mut().zip(values).zip(known) {
            *out = beta * (value - decay * known);
        }
    }

    fn step(k: &[f32], q: &[f32], v: &[f32], decay: f32, beta: f32, state: &mut [f32], y: &mut [f32]) {
        let width = v.len();
        for (row, k) in state.chunks_exact_mut(width).zip(k) {
            for (s, y) in row.iter_mut().zip(y.iter_mut()) {
                *s *= decay;
                *y += k * *s;
            }
        }
        // What was known becomes Δ.
        for (y, v) in y.iter_mut().zip(v) {
            *y = beta * (v - *y);
        }
        let mut output = [0.0f32; 64];
        for start in (0..width).step_by(64) {
            let columns = start..(start + 64).min(width);
            let output = &mut output[..columns.len()];
            output.fill(0.0);
            let delta = &y[columns.clone()];
            for (row, (k, q)) in state.chunks_exact_mut(width).zip(k.iter().zip(q)) {
                let row = &mut row[columns.clone()];
                for ((s, delta), output) in row.iter_mut().zip(delta).zip(output.iter_mut()) {
                    *s += k * delta;
                    *output += q * *s;
                }
            }
            y[columns].copy_from_slice(output);
        }
    }
}
