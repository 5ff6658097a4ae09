//! Attention on the CPU: one task per document and head, a strip of queries against a block of keys at a time.
//!
//! Keys and values of a head are packed once for all its strips. The forward keeps a running maximum and sum per query
//! (Milakov and Gimelshein, *Online normalizer calculation for softmax*, <https://arxiv.org/abs/1805.02867>), the
//! backward recomputes probabilities from the log-sum-exp: memory grows with a document's length, not its square.

use std::ops::Range;

use burn_flex::Flex;
#[cfg(target_arch = "x86_64")]
use burn_tensor::DType;
use burn_tensor::Tensor;

use super::head::Head;
use super::softmax::{add_to, dot, scale, slopes_of_scores, softmax_step};
use super::{AttentionBackward, AttentionOps, AttentionOptions, decode, one_by_one};
#[cfg(target_arch = "x86_64")]
use super::{bf16, bf16_backward};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::matmul::{
    Columns, PackedColumns, PackedRows, RowSource, Side, Stored, Tile, multiply_packed,
};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::{Scalar, narrow, with_float};
use crate::cpu::{parallel, tensor};

/// Queries per strip: four tiles of rows.
const STRIP: usize = 56;
/// Keys per block: one block of the product's reduction.
const KEYS: usize = 512;

/// One head of one document.
struct Task {
    queries: Range<usize>,
    keys: Range<usize>,
    head: usize,
}

/// All heads of all documents with queries, and the multiply-adds of one product over all scores.
fn tasks(options: &AttentionOptions, heads: usize, head_dim: usize) -> (Vec<Task>, usize) {
    let documents = options.documents.documents().filter(|(queries, _)| !queries.is_empty());
    let mut tasks: Vec<Task> = documents
        .flat_map(|(queries, keys)| {
            (0..heads).map(move |head| Task { queries: queries.clone(), keys: keys.clone(), head })
        })
        .collect();
    // Long documents first, so that none is left for the end.
    tasks.sort_by_key(|task| std::cmp::Reverse(task.queries.len() * task.keys.len()));
    let work = tasks.iter().map(|task| task.queries.len() * task.keys.len() * head_dim / 16).sum();
    (tasks, work)
}

/// A strip of queries against a block of keys, both numbered within their document.
struct Pair {
    rows: Range<usize>,
    /// Number of the block, and its keys up to the last that a query of the strip sees.
    block: usize,
    keys: Range<usize>,
}

impl Task {
    fn strips(&self) -> impl Iterator<Item = Range<usize>> {
        let queries = self.queries.len();
        let strips = queries.div_ceil(STRIP);
        (0..strips).map(move |strip| strip * queries / strips..(strip + 1) * queries / strips)
    }

    /// The blocks of keys that the queries `rows` see.
    fn pairs(&self, rows: &Range<usize>, options: &AttentionOptions) -> impl Iterator<Item = Pair> {
        let first = options.visible(rows.start, self.queries.len(), self.keys.len()).start;
        let end = options.visible(rows.end - 1, self.queries.len(), self.keys.len()).end;
        let rows = rows.clone();
        (first / KEYS..end.div_ceil(KEYS)).map(move |block| {
            let keys = block * KEYS..((block + 1) * KEYS).min(end);
            Pair { rows: rows.clone(), block, keys }
        })
    }

    /// How many keys of a pair the first `rows` queries of its strip see: those beyond are not computed.
    fn seen(&self, pair: &Pair, rows: usize) -> usize {
        let end = self.keys.len() - self.queries.len() + pair.rows.start + rows;
        end.saturating_sub(pair.keys.start).min(pair.keys.len())
    }

    /// The first query of the strip, numbered within it, that sees key `key` of the block.
    fn first_seeing(&self, pair: &Pair, key: usize) -> usize {
        let before = self.keys.len() - self.queries.len() + pair.rows.start;
        (key + pair.keys.start).saturating_sub(before).min(pair.rows.len())
    }

    /// The keys of a pair that query `row` sees, numbered within the block.
    fn visible(&self, pair: &Pair, row: usize, options: &AttentionOptions) -> Range<usize> {
        let seen = options.visible(row, self.queries.len(), self.keys.len());
        let inside = |key: usize| key.clamp(pair.keys.start, pair.keys.end) - pair.keys.start;
        inside(seen.start)..inside(seen.end)
    }
}

/// Copies or adds the tiles of a product into `out`, whose rows are `stride` values apart.
fn collect(out: &mut [f32], stride: usize, add: bool) -> impl FnMut(Tile<'_>) {
    move |mut tile| {
        let column = tile.columns.start;
        for (row, values) in tile.iter_mut() {
            let out = &mut out[row * stride + column..][..values.len()];
            if add {
                add_to(out, values);
            } else {
                out.copy_from_slice(values);
            }
        }
    }
}

impl AttentionOps for Flex {
    fn document_attention(
        q: &Tensor<Flex, 3>,
        k: &Tensor<Flex, 3>,
        v: &Tensor<Flex, 3>,
        options: &AttentionOptions,
    ) -> (Tensor<Flex, 3>, Tensor<Flex, 2>) {
        if decode::applies(options) {
            return decode::forward(q, k, v, options);
        }
        let ([tokens, heads, head_dim], [_, kv_heads, _]) = (q.dims(), k.dims());
        let [q, k, v] = [q, k, v].map(|tensor| tensor::primitive(tensor.clone()));
        #[cfg(target_arch = "x86_64")]
        if q.dtype() == DType::BF16 && bf16::applies(options, head_dim) {
            let mut y = pool::take::<half::bf16>(tokens * heads * head_dim);
            let mut log_sum_exp = pool::take::<f32>(heads * tokens);
            let (q, k, v) = (q.storage(), k.storage(), v.storage());
            let operands = bf16::Operands { q, k, v, heads, kv_heads, head_dim, options };
            operands.forward(&mut y, &mut log_sum_exp);
            let y = tensor::from_buffer(y, [tokens, heads, head_dim]);
            return (y, tensor::from_buffer(log_sum_exp, [heads, tokens]));
        }
        let (tasks, work) = tasks(options, heads, head_dim);
        with_float!(q.dtype(), T => {
            let (q, k, v) = (q.storage::<T>(), k.storage::<T>(), v.storage::<T>());
            let mut y = pool::take::<T>(q.len());
            let mut log_sum_exp = pool::take::<f32>(heads * tokens);
            {
                let (y, lse) = (Disjoint::new(&mut y), Disjoint::new(&mut log_sum_exp));
                parallel::for_each(tasks, 2 * work, |task| {
                    let kv_head = task.head / (heads / kv_heads);
                    let keys = Head::new(k, kv_heads, head_dim, kv_head).blocks(&task.keys, KEYS, Side::Transposed);
                    let values = Head::new(v, kv_heads, head_dim, kv_head).blocks(&task.keys, KEYS, Side::Plain);
                    let queries = Head::new(q, heads, head_dim, task.head);
                    let mut strip = ForwardStrip::<T>::new(head_dim);
                    for rows in task.strips() {
                        let tokens_here = task.queries.start + rows.start..task.queries.start + rows.end;
                        queries.pack(tokens_here.clone(), &mut strip.queries);
                        strip.run(&task, &rows, options, &keys, &values);
                        // SAFETY: this head and these tokens belong to this task alone.
                        let lse = unsafe { lse.slice(task.head * tokens + tokens_here.start, rows.len()) };
                        for ((index, token), lse) in tokens_here.enumerate().zip(lse) {
                            let (most, sum) = (strip.most[index], strip.sums[index]);
                            *lse = most + sum.ln();
                            let output = &mut strip.output[index * head_dim..][..head_dim];
                            scale(output, 1.0 / sum);
                            // SAFETY: as above.
                            narrow(output, unsafe { y.slice((token * heads + task.head) * head_dim, head_dim) });
                        }
                    }
                });
            }
            (tensor::from_buffer(y, [tokens, heads, head_dim]), tensor::from_buffer(log_sum_exp, [heads, tokens]))
        })
    }

    fn document_attention_apart(
        q: &Tensor<Flex, 3>,
        states: &[[Tensor<Flex, 3>; 2]],
        options: &AttentionOptions,
    ) -> (Tensor<Flex, 3>, Tensor<Flex, 2>) {
        decode::forward_apart(q, states, options).unwrap_or_else(|| one_by_one(q, states, options))
    }

    fn write_rows_at(room: Tensor<Flex, 3>, first: usize, rows: Tensor<Flex, 3>) -> Tensor<Flex, 3> {
        decode::write_rows(room, first, rows)
    }

    fn document_attention_backward(request: AttentionBackward<'_, Flex>) -> [Tensor<Flex, 3>; 3] {
        let AttentionBackward { q, k, v, output, log_sum_exp, options, dy } = request;
        let ([tokens, heads, head_dim], [keys, kv_heads, _]) = (q.dims(), k.dims());
        let [q, k, v, output, dy] = [q, k, v, output, dy].map(|tensor| tensor::primitive(tensor.clone()));
        let log_sum_exp = tensor::primitive(log_sum_exp.clone());
        let log_sum_exp = log_sum_exp.storage::<f32>();
        #[cfg(target_arch = "x86_64")]
        if q.dtype() == DType::BF16 && bf16::applies(options, head_dim) {
            let mut dq = pool::take::<half::bf16>(tokens * heads * head_dim);
            let [mut dk, mut dv] = [(); 2].map(|()| pool::take::<half::bf16>(keys * kv_heads * head_dim));
            let (q, k, v) = (q.storage(), k.storage(), v.storage());
            let upstream =
                bf16_backward::Upstream { output: output.storage(), log_sum_exp, dy: dy.storage() };
            let operands = bf16::Operands { q, k, v, heads, kv_heads, head_dim, options };
            operands.backward(upstream, &mut dq, &mut dk, &mut dv);
            let [dk, dv] = [dk, dv].map(|sum| tensor::from_buffer(sum, [keys, kv_heads, head_dim]));
            return [tensor::from_buffer(dq, [tokens, heads, head_dim]), dk, dv];
        }
        let (tasks, work) = tasks(options, heads, head_dim);
        with_float!(q.dtype(), T => {
            let (q, k, v) = (q.storage::<T>(), k.storage::<T>(), v.storage::<T>());
            let (output, dy) = (output.storage::<T>(), dy.storage::<T>());
            let mut dq = pool::take::<T>(q.len());
            // Per query head, summed over each group at the end: heads never add into one another's memory.
            let mut dk_heads = pool::take::<f32>(heads * keys * head_dim);
            let mut dv_heads = pool::take::<f32>(heads * keys * head_dim);
            // No task has the keys that no query sees.
            for (_, unseen) in options.documents.documents().filter(|(queries, _)| queries.is_empty()) {
                for head in 0..heads {
                    let range = (head * keys + unseen.start) * head_dim..(head * keys + unseen.end) * head_dim;
                    dk_heads[range.clone()].fill(0.0);
                    dv_heads[range].fill(0.0);
                }
            }
            {
                let dq = Disjoint::new(&mut dq);
                let (dk, dv) = (Disjoint::new(&mut dk_heads), Disjoint::new(&mut dv_heads));
                parallel::for_each(tasks, 5 * work, |task| {
                    let kv_head = task.head / (heads / kv_heads);
                    let start = (task.head * keys + task.keys.start) * head_dim;
                    let length = task.keys.len() * head_dim;
                    // SAFETY: this head and these keys belong to this task alone.
                    let (dk, dv) = unsafe { (dk.slice(start, length), dv.slice(start, length)) };
                    dk.fill(0.0);
                    dv.fill(0.0);
                    let key_head = Head::new(k, kv_heads, head_dim, kv_head);
                    let value_head = Head::new(v, kv_heads, head_dim, kv_head);
                    let packed = PackedHead {
                        keys: key_head.blocks(&task.keys, KEYS, Side::Transposed),
                        keys_plain: key_head.blocks(&task.keys, KEYS, Side::Plain),
                        values: value_head.blocks(&task.keys, KEYS, Side::Transposed),
                    };
                    let queries = Head::new(q, heads, head_dim, task.head);
                    let upstream = Head::new(dy, heads, head_dim, task.head);
                    let outputs = Head::new(output, heads, head_dim, task.head);
                    let mut strip = BackwardStrip::<T>::new(head_dim);
                    for rows in task.strips() {
                        let tokens_here = task.queries.start + rows.start..task.queries.start + rows.end;
                        strip.load(&queries, &upstream, &outputs, tokens_here.clone());
                        let lse = &log_sum_exp[task.head * tokens + tokens_here.start..][..rows.len()];
                        strip.run(&task, &rows, options, &packed, lse, (dk, dv));
                        for (token, dq_row) in tokens_here.zip(strip.dq.chunks_exact(head_dim)) {
                            // SAFETY: this head and these tokens belong to this task alone.
                            narrow(dq_row, unsafe { dq.slice((token * heads + task.head) * head_dim, head_dim) });
                        }
                    }
                });
            }
            let sum = |parts: &[f32]| {
                let mut total = pool::take::<T>(keys * kv_heads * head_dim);
                let rows = parallel::rows_per_task(kv_heads * head_dim);
                let chunk = (rows * kv_heads * head_dim).max(1);
                let tasks = total.chunks_mut(chunk).enumerate().collect();
                parallel::for_each(tasks, parts.len(), |(task, total)| {
                    let group = heads / kv_heads;
                    let mut row_sum = pool::take::<f32>(head_dim);
                    for (index, total) in total.chunks_exact_mut(head_dim).enumerate() {
                        let (key, kv_head) = (task * rows + index / kv_heads, index % kv_heads);
                        let part = |head: usize| &parts[(head * keys + key) * head_dim..][..head_dim];
                        row_sum.copy_from_slice(part(kv_head * group));
                        for head in kv_head * group + 1..(kv_head + 1) * group {
                            add_to(&mut row_sum, part(head));
                        }
                        narrow(&row_sum, total);
                    }
                });
                tensor::from_buffer(total, [keys, kv_heads, head_dim])
            };
            [tensor::from_buffer(dq, [tokens, heads, head_dim]), sum(&dk_heads), sum(&dv_heads)]
        })
    }
}

/// The forward's state for one strip of queries.
struct ForwardStrip<T: Scalar> {
    queries: PackedRows,
    weights: PackedRows,
    scores: Buffer<f32>,
    probabilities: Buffer<T>,
    /// `[rows, head_dim]`, not yet divided by the sums.
    output: Buffer<f32>,
    /// Largest score of each row so far.
    most: [f32; STRIP],
    /// Σ exp(score − most) of each row so far.
    sums: [f32; STRIP],
}

impl<T: Scalar> ForwardStrip<T> {
    fn new(head_dim: usize) -> Self {
        Self {
            queries: PackedRows::reserve::<T>(STRIP, head_dim),
            weights: PackedRows::reserve::<T>(STRIP, KEYS),
            scores: pool::take(STRIP * KEYS),
            probabilities: pool::take(STRIP * KEYS),
            output: pool::take(STRIP * head_dim),
            most: [0.0; STRIP],
            sums: [0.0; STRIP],
        }
    }

    fn run(
        &mut self,
        task: &Task,
        rows: &Range<usize>,
        options: &AttentionOptions,
        keys: &[PackedColumns],
        values: &[PackedColumns],
    ) {
        let height = rows.len();
        let head_dim = self.output.len() / STRIP;
        self.output.fill(0.0);
        self.most.fill(f32::NEG_INFINITY);
        self.sums.fill(0.0);
        for pair in task.pairs(rows, options) {
            let width = pair.keys.len();
            let part = |rows: Range<usize>| (task.seen(&pair, rows.end), 0..head_dim);
            let out = collect(&mut self.scores, width, false);
            multiply_packed(&self.queries, &keys[pair.block], part, out);
            let parts = self.scores.chunks_exact_mut(width).zip(self.probabilities.chunks_exact_mut(width));
            for ((index, row), (scores, probabilities)) in pair.rows.clone().enumerate().zip(parts) {
                let visible = task.visible(&pair, row, options);
                let output = &mut self.output[index * head_dim..][..head_dim];
                let state = (&mut self.most[index], &mut self.sums[index]);
                softmax_step(scores, visible, options, state, output);
                narrow(scores, probabilities);
            }
            let source = RowSource::RowMajor { values: &self.probabilities[..], stride: width };
            self.weights.repack::<T, T>(height, width, source);
            let part = |rows: Range<usize>| (head_dim, 0..task.seen(&pair, rows.end));
            let out = collect(&mut self.output, head_dim, true);
            multiply_packed(&self.weights, &values[pair.block], part, out);
        }
    }
}

/// Keys and values of one head, packed by blocks.
struct PackedHead {
    keys: Vec<PackedColumns>,
    keys_plain: Vec<PackedColumns>,
    values: Vec<PackedColumns>,
}

/// The backward's state for one strip of queries.
struct BackwardStrip<T: Scalar> {
    queries: PackedRows,
    queries_plain: PackedColumns,
    upstream: PackedRows,
    upstream_plain: PackedColumns,
    /// dy · y of each row.
    deltas: [f32; STRIP],
    scores: Buffer<f32>,
    slopes: Buffer<f32>,
    /// Probabilities, then slopes, rounded.
    rounded: Buffer<T>,
    packed: PackedRows,
    /// `[rows, head_dim]`.
    dq: Buffer<f32>,
    head_dim: usize,
}

impl<T: Scalar> BackwardStrip<T> {
    fn new(head_dim: usize) -> Self {
        let nothing = Columns::new(Stored::of::<T>(&[]), [0, 0], Side::Plain);
        Self {
            queries: PackedRows::reserve::<T>(STRIP, head_dim),
            queries_plain: PackedColumns::pack::<T>(&nothing),
            upstream: PackedRows::reserve::<T>(STRIP, head_dim),
            upstream_plain: PackedColumns::pack::<T>(&nothing),
            deltas: [0.0; STRIP],
            scores: pool::take(STRIP * KEYS),
            slopes: pool::take(STRIP * KEYS),
            rounded: pool::take(STRIP * KEYS),
            packed: PackedRows::reserve::<T>(STRIP, KEYS),
            dq: pool::take(STRIP * head_dim),
            head_dim,
        }
    }

    /// Packs the strip's queries and upstream gradients.
    fn load(
        &mut self,
        queries: &Head<'_, T>,
        upstream: &Head<'_, T>,
        outputs: &Head<'_, T>,
        tokens: Range<usize>,
    ) {
        queries.pack(tokens.clone(), &mut self.queries);
        upstream.pack(tokens.clone(), &mut self.upstream);
        self.queries_plain.repack::<T>(&queries.columns(tokens.clone(), Side::Plain));
        self.upstream_plain.repack::<T>(&upstream.columns(tokens.clone(), Side::Plain));
        for (delta, token) in self.deltas.iter_mut().zip(tokens) {
            *delta = dot(upstream.row(token), outputs.row(token));
        }
    }

    fn run(
        &mut self,
        task: &Task,
        rows: &Range<usize>,
        options: &AttentionOptions,
        head: &PackedHead,
        log_sum_exp: &[f32],
        (dk, dv): (&mut [f32], &mut [f32]),
    ) {
        let (height, head_dim) = (rows.len(), self.head_dim);
        self.dq.fill(0.0);
        for pair in task.pairs(rows, options) {
            let width = pair.keys.len();
            let part = |rows: Range<usize>| (task.seen(&pair, rows.end), 0..head_dim);
            let out = collect(&mut self.scores, width, false);
            multiply_packed(&self.queries, &head.keys[pair.block], part, out);
            let out = collect(&mut self.slopes, width, false);
            multiply_packed(&self.upstream, &head.values[pair.block], part, out);
            let parts = self.scores.chunks_exact_mut(width).zip(self.slopes.chunks_exact_mut(width));
            for ((index, row), (scores, slopes)) in pair.rows.clone().enumerate().zip(parts) {
                let visible = task.visible(&pair, row, options);
                let state = (log_sum_exp[index], self.deltas[index]);
                slopes_of_scores(scores, slopes, visible, options, state);
            }
            // Whole pairs of queries, as they are packed.
            let seeing =
                |keys: Range<usize>| (head_dim, task.first_seeing(&pair, keys.start) / 2 * 2..height);
            let keys = pair.keys.start * head_dim..pair.keys.end * head_dim;
            let length = height * width;

            narrow(&self.scores[..length], &mut self.rounded[..length]);
            let transposed = RowSource::Transposed { values: &self.rounded[..length], stride: width };
            self.packed.repack::<T, T>(width, height, transposed);
            let out = collect(&mut dv[keys.clone()], head_dim, true);
            multiply_packed(&self.packed, &self.upstream_plain, seeing, out);

            narrow(&self.slopes[..length], &mut self.rounded[..length]);
            let transposed = RowSource::Transposed { values: &self.rounded[..length], stride: width };
            self.packed.repack::<T, T>(width, height, transposed);
            let out = collect(&mut dk[keys], head_dim, true);
            multiply_packed(&self.packed, &self.queries_plain, seeing, out);

            let source = RowSource::RowMajor { values: &self.rounded[..length], stride: width };
            self.packed.repack::<T, T>(height, width, source);
            let out = collect(&mut self.dq, head_dim, true);
            let part = |rows: Range<usize>| (head_dim, 0..task.seen(&pair, rows.end));
            multiply_packed(&self.packed, &head.keys_plain[pair.block], part, out);
        }
    }
}
