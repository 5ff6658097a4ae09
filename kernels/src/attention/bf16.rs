//! Attention in bf16 with AVX-512: a task is the heads of one key-value head in one document, or several short documents.
//!
//! Keys and values are packed once for the heads that share them. The forward keeps a running maximum and sum per query
//! and block of keys, the backward recomputes probabilities from the log-sum-exp; both hand them from one product to the
//! next as the register tiles of `bf16_tiles` leave them.

use std::ops::Range;

use half::bf16;

use super::AttentionOptions;
use super::bf16_tiles::{
    self as tiles, AS_WEIGHTS, KEYS, MOST_DIM, PANEL, Panel, QUERY, ROWS, SCORE, WEIGHT,
};
use super::head::Head;
use crate::cpu::disjoint::Disjoint;
use crate::cpu::fast;
use crate::cpu::matmul::{Columns, PackedColumns, Side, Stored};
use crate::cpu::parallel;
use crate::cpu::pool::{self, Buffer};

/// Documents of as many queries are tasks for each of their heads, whose gradients are summed at the end.
const LONG: usize = 1024;
/// Multiply-adds of a product of scores that are worth a task.
const TASK: usize = 1 << 19;

/// Whether a call on bf16 takes this path.
pub(super) fn applies(options: &AttentionOptions, head_dim: usize) -> bool {
    fast::available() && options.soft_cap.is_none() && head_dim.is_multiple_of(16) && head_dim <= MOST_DIM
}

/// Tensors of a call, and how they are shaped.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) q: &'a [bf16],
    pub(super) k: &'a [bf16],
    pub(super) v: &'a [bf16],
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) options: &'a AttentionOptions,
}

/// Some heads that share keys and values, in one document.
pub(super) struct Unit {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) kv_head: usize,
    pub(super) heads: Range<usize>,
}

impl Unit {
    /// The keys that query `row` sees.
    pub(super) fn visible(&self, row: usize, options: &AttentionOptions) -> Range<usize> {
        options.visible(row, self.queries.len(), self.keys.len())
    }

    /// Multiply-adds of a product of all scores.
    fn work(&self, head_dim: usize) -> usize {
        self.queries.len() * self.keys.len() * self.heads.len() * head_dim
    }
}

impl Operands<'_> {
    /// All units in tasks, the longest first, so that none is left for the end.
    pub(super) fn tasks(&self) -> Vec<Vec<Unit>> {
        let group = self.heads / self.kv_heads;
        let mut units = Vec::new();
        for (queries, keys) in self.options.documents.documents() {
            if queries.is_empty() {
                continue;
            }
            let together = if queries.len() < LONG { group } else { 1 };
            for first in (0..self.heads).step_by(together) {
                let (queries, keys, heads) = (queries.clone(), keys.clone(), first..first + together);
                units.push(Unit { queries, keys, kv_head: first / group, heads });
            }
        }
        units.sort_by_key(|unit| std::cmp::Reverse(unit.work(self.head_dim)));
        let mut tasks: Vec<Vec<Unit>> = Vec::new();
        let mut held = TASK;
        for unit in units {
            let work = unit.work(self.head_dim);
            match tasks.last_mut() {
                Some(task) if held + work <= TASK => task.push(unit),
                _ => {
                    tasks.push(vec![unit]);
                    held = 0;
                }
            }
            held += work;
        }
        tasks
    }

    pub(super) fn work(tasks: &[Vec<Unit>], head_dim: usize) -> usize {
        tasks.iter().flatten().map(|unit| unit.work(head_dim) / 16).sum()
    }

    fn head<'b>(&self, values: &'b [bf16], heads: usize, head: usize) -> Head<'b, bf16> {
        Head::new(values, heads, self.head_dim, head)
    }

    pub(super) fn keys_of(&self, unit: &Unit) -> Head<'_, bf16> {
        self.head(self.k, self.kv_heads, unit.kv_head)
    }

    pub(super) fn values_of(&self, unit: &Unit) -> Head<'_, bf16> {
        self.head(self.v, self.kv_heads, unit.kv_head)
    }

    /// Number of panels of a row of `head_dim` values, each with its first column and its vectors.
    pub(super) fn dim_panels(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let head_dim = self.head_dim;
        (0..head_dim).step_by(PANEL).map(move |first| (first, if head_dim - first > 16 { 2 } else { 1 }))
    }

    /// The forward: writes the output and ln Σ exp of each query and head.
    pub(super) fn forward(&self, y: &mut [bf16], log_sum_exp: &mut [f32]) {
        let tokens = self.options.documents.queries();
        let tasks = self.tasks();
        let work = Self::work(&tasks, self.head_dim);
        let (y, lse) = (Disjoint::new(y), Disjoint::new(log_sum_exp));
        parallel::for_each(tasks, 2 * work, |task| {
            let mut strip = Forward::new(self.head_dim);
            for unit in task {
                let all = unit.keys.clone();
                strip.keys.repack::<bf16>(&self.keys_of(&unit).columns(all.clone(), Side::Transposed));
                strip.values.repack::<bf16>(&self.values_of(&unit).columns(all, Side::Plain));
                for head in unit.heads.clone() {
                    let queries = self.head(self.q, self.heads, head);
                    for rows in even_parts(unit.queries.len(), ROWS) {
                        let first = unit.queries.start + rows.start;
                        copy_rows(&queries, first..first + rows.len(), &mut strip.queries);
                        strip.run(self, &unit, &rows);
                        // SAFETY: this head and these tokens belong to this unit alone.
                        let lse = unsafe { lse.slice(head * tokens + first, rows.len()) };
                        for (index, lse) in lse.iter_mut().enumerate() {
                            let (most, sum) = (strip.most[index], strip.sums[index]);
                            *lse = most * std::f32::consts::LN_2 + sum.ln();
                            let place = ((first + index) * self.heads + head) * self.head_dim;
                            // SAFETY: as above.
                            let out = unsafe { y.slice(place, self.head_dim) };
                            let row = &strip.output[index * self.head_dim..][..self.head_dim];
                            // SAFETY: the path is taken where the set is there.
                            unsafe { tiles::round(row, 1.0 / sum, out) };
                        }
                    }
                }
            }
        });
    }
}

/// `0..rows` in parts of at most `most` rows, each but the last of an even number, all of about one length.
pub(super) fn even_parts(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let pairs = rows.div_ceil(2);
    let parts = pairs.div_ceil(most / 2);
    (0..parts).map(move |part| 2 * (part * pairs / parts)..(2 * ((part + 1) * pairs / parts)).min(rows))
}

/// Rows one behind the other, [`QUERY`] elements apart, and a row of zeros behind an odd number of them.
pub(super) fn copy_rows(head: &Head<'_, bf16>, rows: Range<usize>, out: &mut [u32]) {
    let count = rows.len();
    let outs = out.chunks_exact_mut(QUERY);
    for (row, out) in rows.zip(outs) {
        let row = head.row(row);
        bytemuck::cast_slice_mut::<u32, bf16>(&mut out[..row.len() / 2]).copy_from_slice(row);
    }
    if count % 2 == 1 {
        out[count * QUERY..][..head.head_dim / 2].fill(0);
    }
}

/// A stretch of a panel of packed columns: `steps` steps from `step` on.
pub(super) fn panel_of(columns: &PackedColumns, panel: usize, step: usize, steps: usize) -> Panel {
    let (values, stride) = columns.panel_values(panel);
    let values = &values[step * stride..(step + steps) * stride];
    Panel { columns: values.as_ptr(), stride, steps }
}

pub(super) fn nothing() -> PackedColumns {
    PackedColumns::pack::<bf16>(&Columns::new(Stored::of::<bf16>(&[]), [0, 0], Side::Plain))
}

/// The forward's state for one tile of queries.
struct Forward {
    keys: PackedColumns,
    values: PackedColumns,
    queries: Buffer<u32>,
    scores: Buffer<f32>,
    weights: Buffer<u32>,
    /// `[rows, head_dim]`, not yet divided by the sums.
    output: Buffer<f32>,
    /// Largest score of each row so far, times log₂ e.
    most: [f32; ROWS],
    /// Σ 2^(score − most) of each row so far.
    sums: [f32; ROWS],
}

impl Forward {
    fn new(head_dim: usize) -> Self {
        Self {
            keys: nothing(),
            values: nothing(),
            queries: pool::take(ROWS * QUERY),
            scores: pool::take(ROWS * SCORE),
            weights: pool::take(ROWS * WEIGHT),
            output: pool::take(ROWS * head_dim),
            most: [0.0; ROWS],
            sums: [0.0; ROWS],
        }
    }

    fn run(&mut self, on: &Operands<'_>, unit: &Unit, rows: &Range<usize>) {
        let head_dim = on.head_dim;
        let height = rows.len().next_multiple_of(2);
        let factor = on.options.scaling * std::f32::consts::LOG2_E;
        self.most.fill(f32::NEG_INFINITY);
        self.sums.fill(0.0);
        let first = unit.visible(rows.start, on.options).start / PANEL * PANEL;
        let end = unit.visible(rows.end - 1, on.options).end;
        for block in (first..end).step_by(KEYS) {
            let seen = (end - block).min(KEYS);
            for start in (0..seen).step_by(PANEL) {
                let panel = panel_of(&self.keys, (block + start) / PANEL, 0, head_dim / 2);
                let vectors = if seen - start > 16 { 2 } else { 1 };
                let out = &mut self.scores[start..];
                // SAFETY: the path is taken where the set is there; the buffers hold a tile of `ROWS` rows of `SCORE`
                // or `QUERY`, and panels are as wide as their keys rounded up to vectors.
                unsafe { tiles::scores(height, vectors, self.queries.as_ptr(), panel, out.as_mut_ptr()) };
            }
            for index in 0..height {
                let visible = match index < rows.len() {
                    true => unit.visible(rows.start + index, on.options),
                    false => block..block,
                };
                let inside = |key: usize| key.saturating_sub(block).min(seen);
                let (scores, out) = (&self.scores[index * SCORE..], &mut self.weights[index * WEIGHT..]);
                let before = self.most[index];
                let ends = (inside(visible.start), inside(visible.end));
                // SAFETY: as above; rows are longer than `KEYS`, a multiple of 32.
                let (most, sum) =
                    unsafe { tiles::weights(scores.as_ptr(), ends, seen, factor, before, out.as_mut_ptr()) };
                self.most[index] = most;
                if most > before && block > first {
                    let correction = (before - most).exp2();
                    self.sums[index] *= correction;
                    for value in &mut self.output[index * head_dim..][..head_dim] {
                        *value *= correction;
                    }
                }
                self.sums[index] += sum;
            }
            for (column, vectors) in on.dim_panels() {
                let panel = panel_of(&self.values, column / PANEL, block / 2, seen.div_ceil(2));
                let (weights, out) = (self.weights.as_ptr(), &mut self.output[column..]);
                let load = block > first;
                // SAFETY: as above; the output has rows of `head_dim` numbers, which the columns are within.
                unsafe {
                    tiles::gather::<AS_WEIGHTS>(
                        height,
                        vectors,
                        weights,
                        panel,
                        out.as_mut_ptr(),
                        head_dim,
                        load,
                    );
                }
            }
        }
    }
}
