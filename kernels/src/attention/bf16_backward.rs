//! The backward of [`bf16`](super::bf16): strips of queries against blocks of keys, whose gradients are summed over all heads
//! that share them.

use std::ops::Range;

use half::bf16;

use super::bf16::{Operands, Unit, copy_rows, even_parts, nothing, panel_of};
use super::bf16_tiles::{
    self as tiles, ACROSS, ALONG_KEYS, ALONG_QUERIES, MOST_DIM, PANEL, QUERY, ROWS, SLOPE, SLOPED, Slopes,
};
use super::head::Head;
use super::softmax::add_to;
use crate::cpu::disjoint::Disjoint;
use crate::cpu::matmul::{PackedColumns, Side};
use crate::cpu::parallel;
use crate::cpu::pool::{self, Buffer};

/// Queries of a strip: four tiles.
const STRIP: usize = 4 * ROWS;

/// What the forward left, and the upstream gradient.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a> {
    pub(super) output: &'a [bf16],
    pub(super) log_sum_exp: &'a [f32],
    pub(super) dy: &'a [bf16],
}

/// Where the gradients of keys and values of one call go.
struct Gradients<'a> {
    /// Rounded, `[keys, kv_heads, head_dim]`: each unit that has all its heads writes its own.
    dk: Disjoint<'a, bf16>,
    dv: Disjoint<'a, bf16>,
    /// Of units that have one head of several, `[heads, keys, head_dim]`; else empty.
    dk_parts: Disjoint<'a, f32>,
    dv_parts: Disjoint<'a, f32>,
}

impl Operands<'_> {
    /// The backward: writes all three gradients.
    pub(super) fn backward(&self, upstream: Upstream<'_>, dq: &mut [bf16], dk: &mut [bf16], dv: &mut [bf16]) {
        let (group, keys, head_dim) =
            (self.heads / self.kv_heads, self.options.documents.keys(), self.head_dim);
        let tasks = self.tasks();
        let is_split = |unit: &Unit| unit.heads.len() < group;
        // The longest unit is the first.
        let parts = match tasks.iter().flatten().any(is_split) {
            true => self.heads * keys * head_dim,
            false => 0,
        };
        let (mut dk_parts, mut dv_parts) = (pool::take::<f32>(parts), pool::take::<f32>(parts));
        // No unit has the keys that no query sees.
        let unseen = self.options.documents.documents().filter(|(queries, _)| queries.is_empty());
        for (_, unseen) in unseen {
            let rows = unseen.start * self.kv_heads * head_dim..unseen.end * self.kv_heads * head_dim;
            dk[rows.clone()].fill(bf16::ZERO);
            dv[rows].fill(bf16::ZERO);
        }
        let split: Vec<(Range<usize>, usize)> = tasks
            .iter()
            .flatten()
            .filter(|unit| is_split(unit) && unit.heads.start % group == 0)
            .map(|unit| (unit.keys.clone(), unit.kv_head))
            .collect();
        let work = Self::work(&tasks, head_dim);
        let dq = Disjoint::new(dq);
        {
            let gradients = Gradients {
                dk: Disjoint::new(dk),
                dv: Disjoint::new(dv),
                dk_parts: Disjoint::new(&mut dk_parts),
                dv_parts: Disjoint::new(&mut dv_parts),
            };
            parallel::for_each(tasks, 5 * work, |task| {
                let mut strip = Backward::new(head_dim);
                for unit in task {
                    strip.pack(self, &unit);
                    for head in unit.heads.clone() {
                        strip.head(self, &unit, head, upstream, &dq);
                    }
                    strip.give(self, &unit, &gradients);
                }
            });
        }
        for (parts, out, factor) in [(&dk_parts, &mut *dk, self.options.scaling), (&dv_parts, &mut *dv, 1.0)]
        {
            let out = Disjoint::new(out);
            parallel::for_each(split.clone(), group * work / 64, |(keys_here, kv_head)| {
                let mut sum = [0.0f32; MOST_DIM];
                let sum = &mut sum[..head_dim];
                for key in keys_here {
                    let part = |head: usize| &parts[(head * keys + key) * head_dim..][..head_dim];
                    sum.copy_from_slice(part(kv_head * group));
                    for head in kv_head * group + 1..(kv_head + 1) * group {
                        add_to(sum, part(head));
                    }
                    // SAFETY: each key and head is in one of the ranges, and the path is taken where the set is there.
                    unsafe {
                        let out = out.slice((key * self.kv_heads + kv_head) * head_dim, head_dim);
                        tiles::round(sum, factor, out);
                    }
                }
            });
        }
    }
}

/// The backward's state for one unit, and for one strip of its queries.
struct Backward {
    /// `[head_dim, keys]`, `[keys, head_dim]` and `[head_dim, keys]`.
    keys: PackedColumns,
    keys_plain: PackedColumns,
    values: PackedColumns,
    /// The strip's rows, as left and as right operands.
    queries: Buffer<u32>,
    queries_plain: PackedColumns,
    upstream: Buffer<u32>,
    upstream_plain: PackedColumns,
    /// log₂ Σ exp and dy · y of each row.
    shifts: [f32; STRIP],
    deltas: [f32; STRIP],
    weights: Buffer<u32>,
    across: Buffer<u32>,
    along: Buffer<u32>,
    /// `[rows, head_dim]`.
    dq: Buffer<f32>,
    /// `[keys, head_dim]`, with room for a tile's rows past the last.
    dk: Buffer<f32>,
    dv: Buffer<f32>,
}

impl Backward {
    fn new(head_dim: usize) -> Self {
        Self {
            keys: nothing(),
            keys_plain: nothing(),
            values: nothing(),
            queries: pool::take(STRIP * QUERY),
            queries_plain: nothing(),
            upstream: pool::take(STRIP * QUERY),
            upstream_plain: nothing(),
            shifts: [0.0; STRIP],
            deltas: [0.0; STRIP],
            weights: pool::take(STRIP / 2 * ACROSS),
            across: pool::take(STRIP / 2 * ACROSS),
            along: pool::take(STRIP * SLOPE),
            dq: pool::take(STRIP * head_dim),
            dk: pool::take(0),
            dv: pool::take(0),
        }
    }

    /// Packs what all heads of a unit share, and begins the gradients of its keys.
    fn pack(&mut self, on: &Operands<'_>, unit: &Unit) {
        let (keys, values) = (on.keys_of(unit), on.values_of(unit));
        self.keys.repack::<bf16>(&keys.columns(unit.keys.clone(), Side::Transposed));
        self.keys_plain.repack::<bf16>(&keys.columns(unit.keys.clone(), Side::Plain));
        self.values.repack::<bf16>(&values.columns(unit.keys.clone(), Side::Transposed));
        let length = unit.keys.len().next_multiple_of(2) * on.head_dim;
        for sum in [&mut self.dk, &mut self.dv] {
            if sum.len() < length {
                *sum = pool::take(length);
            }
            sum[..length].fill(0.0);
        }
    }

    /// Writes dq of one head and adds onto dk and dv.
    fn head(
        &mut self,
        on: &Operands<'_>,
        unit: &Unit,
        head: usize,
        upstream: Upstream<'_>,
        dq: &Disjoint<'_, bf16>,
    ) {
        let (head_dim, tokens) = (on.head_dim, on.options.documents.queries());
        let of = |values| Head::new(values, on.heads, head_dim, head);
        let (queries, dy, outputs) = (of(on.q), of(upstream.dy), of(upstream.output));
        for rows in even_parts(unit.queries.len(), STRIP) {
            let first = unit.queries.start + rows.start;
            let here = first..first + rows.len();
            copy_rows(&queries, here.clone(), &mut self.queries);
            copy_rows(&dy, here.clone(), &mut self.upstream);
            self.queries_plain.repack::<bf16>(&queries.columns(here.clone(), Side::Plain));
            self.upstream_plain.repack::<bf16>(&dy.columns(here.clone(), Side::Plain));
            let lse = &upstream.log_sum_exp[head * tokens + first..];
            for (index, token) in here.clone().enumerate() {
                self.shifts[index] = lse[index] * std::f32::consts::LOG2_E;
                // SAFETY: the path is taken where the set is there.
                self.deltas[index] = unsafe { tiles::dot(dy.row(token), outputs.row(token)) };
            }
            self.strip(on, unit, &rows);
            for (token, row) in here.zip(self.dq.chunks_exact(head_dim)) {
                // SAFETY: this head and these tokens belong to this unit alone.
                let out = unsafe { dq.slice((token * on.heads + head) * head_dim, head_dim) };
                // SAFETY: the path is taken where the set is there.
                unsafe { tiles::round(row, on.options.scaling, out) };
            }
        }
    }

    fn strip(&mut self, on: &Operands<'_>, unit: &Unit, rows: &Range<usize>) {
        let first = unit.visible(rows.start, on.options).start / PANEL * PANEL;
        let end = unit.visible(rows.end - 1, on.options).end;
        for block in (first..end).step_by(SLOPED) {
            let seen = (end - block).min(SLOPED);
            for tile in even_parts(rows.len(), ROWS) {
                self.slopes(on, unit, rows, tile, block, block > first);
            }
            self.key_gradients(on, unit, rows, block, seen);
        }
    }

    /// Probabilities and slopes of the queries `tile` of a strip against a block of keys, and what they add to dq: the first
    /// block `load`s nothing.
    fn slopes(
        &mut self,
        on: &Operands<'_>,
        unit: &Unit,
        rows: &Range<usize>,
        tile: Range<usize>,
        block: usize,
        load: bool,
    ) {
        let head_dim = on.head_dim;
        let height = tile.len().next_multiple_of(2);
        let ends: [Range<usize>; ROWS] = std::array::from_fn(|index| match index < tile.len() {
            true => unit.visible(rows.start + tile.start + index, on.options),
            false => block..block,
        });
        let seen = ends[tile.len() - 1].end.saturating_sub(block).min(SLOPED);
        let pair = tile.start / 2;
        for start in (0..seen).step_by(PANEL) {
            let key = block + start;
            let vectors = if seen - start > 16 { 2 } else { 1 };
            // Of most tiles every query sees every key.
            let all_see =
                key >= ends[tile.len() - 1].start && key + PANEL <= ends[0].end && tile.len() == height;
            let below = |end: usize| ((1u64 << end.saturating_sub(key).min(32)) - 1) as u32;
            let operands = Slopes {
                queries: self.queries[tile.start * QUERY..].as_ptr(),
                upstream: self.upstream[tile.start * QUERY..].as_ptr(),
                keys: panel_of(&self.keys, key / PANEL, 0, head_dim / 2),
                values: panel_of(&self.values, key / PANEL, 0, head_dim / 2),
                factor: on.options.scaling * std::f32::consts::LOG2_E,
                shifts: self.shifts[tile.start..].as_ptr(),
                deltas: self.deltas[tile.start..].as_ptr(),
                visible: match all_see {
                    true => [u32::MAX; ROWS],
                    false => ends.each_ref().map(|seen| below(seen.end) & !below(seen.start)),
                },
                weights: self.weights[pair * ACROSS + start..].as_mut_ptr(),
                across: self.across[pair * ACROSS + start..].as_mut_ptr(),
                along: self.along[tile.start * SLOPE + start / 2..].as_mut_ptr(),
            };
            // SAFETY: the path is taken where the set is there; the buffers have rows for a strip, in which tiles begin
            // at even ones, and panels are as wide as their keys rounded up to vectors.
            unsafe { tiles::slopes(height, vectors, &operands) };
        }
        // A tile of keys reaches up to so far beyond the last key that its first query sees.
        let beyond = seen.next_multiple_of(16);
        for pair in pair..pair + height / 2 {
            for out in [&mut self.weights, &mut self.across] {
                out[pair * ACROSS + beyond..][..16].fill(0);
            }
        }
        for (column, vectors) in on.dim_panels() {
            let panel = panel_of(&self.keys_plain, column / PANEL, block / 2, seen.div_ceil(2));
            let along = self.along[tile.start * SLOPE..].as_ptr();
            let out = &mut self.dq[tile.start * head_dim + column..];
            // SAFETY: as above; rows of dq have `head_dim` numbers, which the columns are within.
            unsafe {
                tiles::gather::<ALONG_KEYS>(height, vectors, along, panel, out.as_mut_ptr(), head_dim, load);
            }
        }
    }

    /// What a strip adds to the gradients of the `seen` keys of a block.
    fn key_gradients(
        &mut self,
        on: &Operands<'_>,
        unit: &Unit,
        rows: &Range<usize>,
        block: usize,
        seen: usize,
    ) {
        let head_dim = on.head_dim;
        let pairs = rows.len().div_ceil(2);
        let before = unit.keys.len() - unit.queries.len() + rows.start;
        for tile in even_parts(seen, ROWS) {
            let height = tile.len().next_multiple_of(2);
            // The first query of the strip that sees one of these keys, and whole pairs.
            let first = (block + tile.start).saturating_sub(before) / 2;
            let place = first * ACROSS + tile.start;
            for (column, vectors) in on.dim_panels() {
                let start = (block + tile.start) * head_dim + column;
                let parts = [
                    (&self.weights, &self.upstream_plain, &mut self.dv),
                    (&self.across, &self.queries_plain, &mut self.dk),
                ];
                for (left, right, out) in parts {
                    let panel = panel_of(right, column / PANEL, first, pairs - first);
                    let (left, out) = (left[place..].as_ptr(), out[start..].as_mut_ptr());
                    // SAFETY: as above; dk and dv have an even number of rows, as many as there are keys or one more.
                    unsafe {
                        tiles::gather::<ALONG_QUERIES>(height, vectors, left, panel, out, head_dim, true);
                    }
                }
            }
        }
    }

    /// Writes the gradients of a unit's keys, rounded if the unit has all heads that share them.
    fn give(&mut self, on: &Operands<'_>, unit: &Unit, to: &Gradients<'_>) {
        let (head_dim, count) = (on.head_dim, unit.keys.len());
        if unit.heads.len() < on.heads / on.kv_heads {
            let start = (unit.heads.start * on.options.documents.keys() + unit.keys.start) * head_dim;
            for (sum, out) in [(&self.dk, &to.dk_parts), (&self.dv, &to.dv_parts)] {
                // SAFETY: this head and these keys belong to this unit alone.
                unsafe { out.slice(start, count * head_dim) }.copy_from_slice(&sum[..count * head_dim]);
            }
            return;
        }
        for (sum, out, factor) in [(&self.dk, &to.dk, on.options.scaling), (&self.dv, &to.dv, 1.0)] {
            for (key, row) in unit.keys.clone().zip(sum.chunks_exact(head_dim)) {
                // SAFETY: this head and these keys belong to this unit alone.
                let out = unsafe { out.slice((key * on.kv_heads + unit.kv_head) * head_dim, head_dim) };
                // SAFETY: the path is taken where the set is there.
                unsafe { tiles::round(row, factor, out) };
            }
        }
    }
}
