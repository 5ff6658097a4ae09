//! The backward pass of one document and key head: the states of its chunks are computed again, then its chunks are walked
//! from the last to the first, value head after value head.

use super::chunk::{Chunk, Recurrence, decays_at, fade, mask};
use super::products::{Left, Right, add_to, multiply, multiply_part, scale, scaled, solve_transposed};
use super::task::{Inputs, Task, chunks, numbers};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::pool::Buffer;
use crate::cpu::scalar::{Scalar, widen};
use crate::cpu::{math, vectorized};
use crate::delta_rule::sizes::{CHUNK, DeltaHeads, EPSILON};

/// Where gradients go.
pub(super) struct Out<'a, T> {
    pub(super) mixed: Disjoint<'a, T>,
    pub(super) decay: Disjoint<'a, T>,
    pub(super) write: Disjoint<'a, T>,
}

/// What is computed again before a head's chunks are walked back, each by chunk.
struct Kept {
    /// The state before the chunk, `[key_dim, value_dim]`.
    states: Buffer<f32>,
    /// Δ, `[rows, value_dim]`.
    deltas: Buffer<f32>,
    /// A, `[rows, rows]`.
    a: Buffer<f32>,
}

/// The gradients of the document `task` with regard to one key head and its value heads.
pub(super) fn run<T: Scalar>(inputs: &Inputs<'_, T>, dy: &[T], task: &Task, out: &Out<'_, T>) {
    let DeltaHeads { keys, values, key_dim, value_dim } = inputs.heads;
    let (tokens, count) = (task.tokens.len(), chunks(&task.tokens).len());
    let size = key_dim * value_dim;
    let mut kept = Kept {
        states: numbers(count * size),
        deltas: numbers(tokens * value_dim),
        a: numbers(count * CHUNK * CHUNK),
    };
    // Gradients of normalised keys and scaled queries, `[tokens, keys | queries]`.
    let mut sums = numbers(tokens * 2 * key_dim);
    sums.fill(0.0);
    let mut chunk = Chunk::new(inputs.heads);
    let mut walk = Walk::new(inputs.heads);
    let group = values / keys;
    for head in task.head * group..(task.head + 1) * group {
        remember(inputs, task, head, &mut chunk, &mut kept);
        walk.is_last = true;
        for (index, range) in chunks(&task.tokens).enumerate().rev() {
            chunk.load(inputs, range.clone(), head);
            let first = range.start - task.tokens.start;
            let next = (index + 1 < count).then(|| &kept.states[(index + 1) * size..][..size]);
            let before = Before {
                state: &kept.states[index * size..][..size],
                is_zero: index == 0,
                next,
                delta: &kept.deltas[first * value_dim..][..range.len() * value_dim],
                a: &kept.a[index * CHUNK * CHUNK..][..range.len() * range.len()],
            };
            for (token, row) in range.clone().zip(walk.dy.chunks_exact_mut(value_dim)) {
                widen(&dy[(token * values + head) * value_dim..][..value_dim], row);
            }
            walk.chunk(&chunk, &before);
            let sums = &mut sums[first * 2 * key_dim..][..range.len() * 2 * key_dim];
            walk.add_queries_and_keys(&chunk, sums);
            for (row, token) in range.enumerate() {
                // SAFETY: this value head of this token belongs to this task alone.
                unsafe {
                    let start = token * inputs.width + inputs.heads.places(head)[2];
                    let dv = out.mixed.slice(start, value_dim);
                    crate::cpu::scalar::narrow(&walk.dv[row * value_dim..][..value_dim], dv);
                    out.decay.slice(token * values + head, 1)[0] = T::from_f32(walk.ddecay[row]);
                    out.write.slice(token * values + head, 1)[0] = T::from_f32(walk.dwrite[row]);
                }
            }
        }
    }
    let [query, key, _] = inputs.heads.places(task.head * group);
    let factor = 1.0 / (key_dim as f32).sqrt();
    let mut unit = numbers(key_dim);
    for (token, sums) in task.tokens.clone().zip(sums.chunks_exact(2 * key_dim)) {
        let (dk, dq) = sums.split_at(key_dim);
        for (place, factor, gradient) in [(key, 1.0, dk), (query, factor, dq)] {
            let start = token * inputs.width + place;
            // SAFETY: this key head of this token belongs to this task alone.
            let out = unsafe { out.mixed.slice(start, key_dim) };
            normalise_backward::<T>(&inputs.mixed[start..start + key_dim], factor, gradient, &mut unit, out);
        }
    }
}

/// Computes the states of a head's chunks again.
fn remember<T: Scalar>(inputs: &Inputs<'_, T>, task: &Task, head: usize, chunk: &mut Chunk, kept: &mut Kept) {
    let DeltaHeads { key_dim, value_dim, .. } = inputs.heads;
    let size = key_dim * value_dim;
    let mut recurrence = Recurrence::new(inputs.heads, true);
    let mut state = numbers(size);
    state.fill(0.0);
    for (index, range) in chunks(&task.tokens).enumerate() {
        chunk.load(inputs, range.clone(), head);
        kept.states[index * size..][..size].copy_from_slice(&state);
        recurrence.state_alone(chunk, &mut state);
        let (rows, first) = (range.len(), range.start - task.tokens.start);
        let delta = &recurrence.delta[..rows * value_dim];
        kept.deltas[first * value_dim..][..rows * value_dim].copy_from_slice(delta);
        kept.a[index * CHUNK * CHUNK..][..rows * rows].copy_from_slice(&recurrence.scores[..rows * rows]);
    }
}

/// What is known of a chunk.
struct Before<'a> {
    state: &'a [f32],
    is_zero: bool,
    /// The state behind the chunk; `None` where nothing follows.
    next: Option<&'a [f32]>,
    delta: &'a [f32],
    a: &'a [f32],
}

/// The way back through the chunks of a head.
struct Walk {
    heads: DeltaHeads,
    /// Whether no chunk was walked yet: E is zero.
    is_last: bool,
    /// E, `[key_dim, value_dim]`.
    slope: Buffer<f32>,
    /// dY, `[rows, value_dim]`, then dR: one operand of dP and dA.
    dy: Buffer<f32>,
    upstream: Buffer<f32>,
    dv: Buffer<f32>,
    /// X: keys' rows, then queries', `[2 · rows, value_dim]`.
    x: Buffer<f32>,
    /// P, `[rows, rows]`.
    p: Buffer<f32>,
    /// β D dA, then D dP, `[2 · rows, rows]`.
    slopes: Buffer<f32>,
    /// `row` of keys, then dQ̂, `[2 · rows, key_dim]`.
    rows: Buffer<f32>,
    /// `col` of keys, `[rows, key_dim]`.
    columns: Buffer<f32>,
    fading: Buffer<f32>,
    ddecay: [f32; CHUNK],
    dwrite: [f32; CHUNK],
    left: Left,
    right: Right,
}

impl Walk {
    fn new(heads: DeltaHeads) -> Self {
        let DeltaHeads { key_dim, value_dim, .. } = heads;
        Self {
            heads,
            is_last: true,
            slope: numbers(key_dim * value_dim),
            dy: numbers(CHUNK * value_dim),
            upstream: numbers(2 * CHUNK * value_dim),
            dv: numbers(CHUNK * value_dim),
            x: numbers(2 * CHUNK * value_dim),
            p: numbers(CHUNK * CHUNK),
            slopes: numbers(2 * CHUNK * CHUNK),
            rows: numbers(2 * CHUNK * key_dim),
            columns: numbers(CHUNK * key_dim),
            fading: numbers(CHUNK * key_dim),
            ddecay: [0.0; CHUNK],
            dwrite: [0.0; CHUNK],
            left: Left::new(),
            right: Right::new(),
        }
    }

    /// The gradients of a chunk, and E before it.
    fn chunk(&mut self, chunk: &Chunk, before: &Before<'_>) {
        self.deltas(chunk, before);
        self.scores(chunk, before);
        self.queries_and_keys(chunk, before);
        self.gates(chunk, before);
        self.slope(chunk);
    }

    /// dR behind its zeros in `upstream`, dV, dβ and X.
    fn deltas(&mut self, chunk: &Chunk, before: &Before<'_>) {
        let DeltaHeads { key_dim, value_dim, .. } = self.heads;
        let rows = chunk.rows;
        let size = rows * value_dim;
        self.left.plain(chunk.queries(), rows, key_dim);
        self.right.transposed(chunk.keys(), key_dim, rows);
        multiply_part(&self.left, &self.right, &mut self.p, false, |tile| (tile.end, 0..key_dim));
        let mut decays = [0.0; CHUNK];
        for row in 0..rows {
            decays_at(&chunk.log_decay, row, &mut decays);
            mask(&mut self.p[row * rows..][..rows], &decays[..=row], 1.0);
        }
        let (dr, dy) = self.upstream[..2 * size].split_at_mut(size);
        dy.copy_from_slice(&self.dy[..size]);
        self.left.transposed(&self.p[..rows * rows], rows, rows);
        self.right.plain(dy, rows, value_dim);
        multiply_part(&self.left, &self.right, dr, false, |tile| (value_dim, tile.start..rows));
        if !self.is_last {
            fade(chunk, key_dim, &mut self.fading);
            self.left.plain(&self.fading, rows, key_dim);
            self.right.plain(&self.slope, key_dim, value_dim);
            multiply(&self.left, &self.right, dr, true);
        }
        solve_transposed(before.a, rows, dr, value_dim);
        for row in 0..rows {
            let own = row * value_dim..(row + 1) * value_dim;
            let beta = chunk.beta[row];
            self.dwrite[row] = (1.0 - beta) * dot(&dr[own.clone()], &before.delta[own.clone()]);
            scaled(&dr[own.clone()], beta, &mut self.dv[own.clone()]);
            scaled(&self.dv[own.clone()], -chunk.decay[row], &mut self.x[own.clone()]);
            scaled(&dy[own.clone()], chunk.decay[row], &mut self.x[size..][own]);
        }
    }

    /// β D dA and D dP.
    fn scores(&mut self, chunk: &Chunk, before: &Before<'_>) {
        let (rows, width) = (chunk.rows, self.heads.value_dim);
        self.left.plain(&self.upstream, 2 * rows, width);
        self.right.transposed(before.delta, width, rows);
        multiply(&self.left, &self.right, &mut self.slopes, false);
        let mut decays = [0.0; CHUNK];
        for row in 0..rows {
            decays_at(&chunk.log_decay, row, &mut decays);
            mask(&mut self.slopes[row * rows..][..rows], &decays[..row], -chunk.beta[row]);
            mask(&mut self.slopes[(rows + row) * rows..][..rows], &decays[..=row], 1.0);
        }
    }

    /// `row`, dQ̂ and `col`.
    fn queries_and_keys(&mut self, chunk: &Chunk, before: &Before<'_>) {
        let DeltaHeads { key_dim, value_dim, .. } = self.heads;
        let rows = chunk.rows;
        self.left.plain(&self.slopes, 2 * rows, rows);
        self.right.plain(chunk.keys(), rows, key_dim);
        multiply(&self.left, &self.right, &mut self.rows, false);
        if !before.is_zero {
            self.left.plain(&self.x, 2 * rows, value_dim);
            self.right.transposed(before.state, value_dim, key_dim);
            multiply(&self.left, &self.right, &mut self.rows, true);
        }
        self.left.transposed(&self.slopes, rows, 2 * rows);
        self.right.plain(&chunk.keys_queries, 2 * rows, key_dim);
        multiply(&self.left, &self.right, &mut self.columns, false);
        if !self.is_last {
            // Of exp(G_last − G) K̂, before the factor.
            let fading = &mut self.fading[..rows * key_dim];
            self.left.plain(before.delta, rows, value_dim);
            self.right.transposed(&self.slope, value_dim, key_dim);
            multiply(&self.left, &self.right, fading, false);
            let each = fading.chunks_exact_mut(key_dim).zip(self.columns.chunks_exact_mut(key_dim));
            for ((fading, column), rest) in each.zip(chunk.rest) {
                scale(fading, rest);
                add_to(column, fading);
            }
        }
    }

    /// The gradient of what the decay follows from.
    fn gates(&mut self, chunk: &Chunk, before: &Before<'_>) {
        let key_dim = self.heads.key_dim;
        let mut sum = match (before.next, self.is_last) {
            (Some(next), false) => dot(next, &self.slope),
            _ => 0.0,
        };
        for row in (0..chunk.rows).rev() {
            let own = row * key_dim..(row + 1) * key_dim;
            let (keys, queries) = self.rows.split_at(chunk.rows * key_dim);
            sum += dot(&chunk.queries()[own.clone()], &queries[own.clone()]);
            sum += dot(&chunk.keys()[own.clone()], &keys[own.clone()]);
            sum -= dot(&chunk.keys()[own.clone()], &self.columns[own]);
            self.ddecay[row] = sum * chunk.slope[row];
        }
    }

    /// E before the chunk.
    fn slope(&mut self, chunk: &Chunk) {
        let DeltaHeads { key_dim, value_dim, .. } = self.heads;
        self.left.transposed(&chunk.keys_queries, key_dim, 2 * chunk.rows);
        self.right.plain(&self.x, 2 * chunk.rows, value_dim);
        if !self.is_last {
            scale(&mut self.slope, chunk.last_decay());
        }
        multiply(&self.left, &self.right, &mut self.slope, !self.is_last);
        self.is_last = false;
    }

    /// Adds dK̂ and dQ̂ to `sums`, `[rows, keys | queries]`.
    fn add_queries_and_keys(&self, chunk: &Chunk, sums: &mut [f32]) {
        let key_dim = self.heads.key_dim;
        for (row, sums) in sums.chunks_exact_mut(2 * key_dim).enumerate() {
            let (key, query) = sums.split_at_mut(key_dim);
            add_to(key, &self.rows[row * key_dim..][..key_dim]);
            add_to(key, &self.columns[row * key_dim..][..key_dim]);
            add_to(query, &self.rows[(chunk.rows + row) * key_dim..][..key_dim]);
        }
    }
}

vectorized! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        math::dot(a, b)
    }

    /// The gradient of x for `gradient` of factor · x / √(Σ x² + ε).
    fn normalise_backward<T: Scalar>(x: &[T], factor: f32, gradient: &[f32], unit: &mut [f32], dx: &mut [T]) {
        for (unit, x) in unit.iter_mut().zip(x) {
            *unit = x.to_f32();
        }
        let r = 1.0 / (math::dot(unit, unit) + EPSILON).sqrt();
        for unit in unit.iter_mut() {
            *unit *= r;
        }
        let along = math::dot(unit, gradient);
        for ((dx, unit), gradient) in dx.iter_mut().zip(unit.iter()).zip(gradient) {
            *dx = T::from_f32(factor * r * (gradient - unit * along));
        }
    }
}
