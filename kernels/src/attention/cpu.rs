//! Attention on the CPU: one task per document and head, one strip of queries at a time.

use std::ops::Range;

use burn::tensor::Tensor;
use burn_flex::Flex;

use super::{AttentionBackward, AttentionOptions};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::gemm::{Destination, Matrix, gemm};
use crate::cpu::scalar::{Scalar, narrow, widen, with_float};
use crate::cpu::{math, parallel, scratch, tensor, vectorized};

/// Queries per strip.
const STRIP: usize = 64;

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

/// A strip of queries within a task: rows of the document, and the keys that any of them sees.
struct Strip {
    rows: Range<usize>,
    keys: Range<usize>,
}

fn strips<'a>(task: &'a Task, options: &'a AttentionOptions) -> impl Iterator<Item = Strip> + 'a {
    let (queries, keys) = (task.queries.len(), task.keys.len());
    (0..queries).step_by(STRIP).map(move |start| {
        let rows = start..(start + STRIP).min(queries);
        let first = options.visible(rows.start, queries, keys);
        let last = options.visible(rows.end - 1, queries, keys);
        Strip { rows, keys: first.start..last.end }
    })
}

/// Copies one head of the rows of `[rows, heads, head_dim]` to `[rows, head_dim]` in f32.
fn gather<T: Scalar>(
    values: &[T],
    rows: Range<usize>,
    head: usize,
    heads: usize,
    head_dim: usize,
    out: &mut [f32],
) {
    for (row, out) in rows.zip(out.chunks_exact_mut(head_dim)) {
        widen(&values[(row * heads + head) * head_dim..][..head_dim], out);
    }
}

/// `attention_with_log_sum_exp` of the CPU backend.
pub(crate) fn forward(
    q: Tensor<Flex, 3>,
    k: Tensor<Flex, 3>,
    v: Tensor<Flex, 3>,
    options: &AttentionOptions,
) -> (Tensor<Flex, 3>, Tensor<Flex, 2>) {
    let ([tokens, heads, head_dim], [_, kv_heads, _]) = (q.dims(), k.dims());
    let (q, k, v) = (tensor::primitive(q), tensor::primitive(k), tensor::primitive(v));
    let (tasks, work) = tasks(options, heads, head_dim);
    with_float!(q.dtype(), T => {
        let (q, k, v) = (q.storage::<T>(), k.storage::<T>(), v.storage::<T>());
        let mut y = vec![<T as Scalar>::from_f32(0.0); q.len()];
        let mut log_sum_exp = vec![0.0f32; heads * tokens];
        let (y_parts, lse_parts) = (Disjoint::new(&mut y), Disjoint::new(&mut log_sum_exp));
        parallel::for_each(tasks, 2 * work, |task| {
            let kv_head = task.head / (heads / kv_heads);
            let length = task.keys.len() * head_dim;
            let (mut keys, mut values) = (scratch::take(length), scratch::take(length));
            gather(k, task.keys.clone(), kv_head, kv_heads, head_dim, &mut keys);
            gather(v, task.keys.clone(), kv_head, kv_heads, head_dim, &mut values);
            let mut queries = scratch::take(STRIP * head_dim);
            let mut output = scratch::take(STRIP * head_dim);
            for Strip { rows, keys: seen } in strips(&task, options) {
                let tokens_here = task.queries.start + rows.start..task.queries.start + rows.end;
                gather(q, tokens_here.clone(), task.head, heads, head_dim, &mut queries);
                let (height, width) = (rows.len(), seen.len());
                let mut scores = scratch::take(height * width);
                let left = Matrix::rows(&queries, head_dim);
                let right = Matrix::rows(&keys[seen.start * head_dim..], head_dim).transposed();
                let replace = Destination::Replace;
                gemm([height, head_dim, width], &mut scores, width, replace, options.scaling, left, right);
                // SAFETY: this head and these tokens belong to this task alone.
                let lse = unsafe { lse_parts.slice(task.head * tokens + tokens_here.start, height) };
                for ((row, scores), lse) in rows.zip(scores.chunks_exact_mut(width)).zip(lse) {
                    let visible = options.visible(row, task.queries.len(), task.keys.len());
                    *lse = softmax(scores, visible.start - seen.start..visible.end - seen.start);
                }
                let left = Matrix::rows(&scores, width);
                let right = Matrix::rows(&values[seen.start * head_dim..], head_dim);
                gemm([height, width, head_dim], &mut output, head_dim, replace, 1.0, left, right);
                for (token, output) in tokens_here.zip(output.chunks_exact(head_dim)) {
                    // SAFETY: as above.
                    let y = unsafe { y_parts.slice((token * heads + task.head) * head_dim, head_dim) };
                    narrow(output, y);
                }
            }
        });
        (tensor::from_vec(y, [tokens, heads, head_dim]), tensor::from_vec(log_sum_exp, [heads, tokens]))
    })
}

/// `attention_backward` of the CPU backend.
pub(crate) fn backward(request: AttentionBackward<Flex>, dy: Tensor<Flex, 3>) -> [Tensor<Flex, 3>; 3] {
    let AttentionBackward { q, k, v, output, log_sum_exp, options } = request;
    let ([tokens, heads, head_dim], [keys, kv_heads, _]) = (q.dims(), k.dims());
    let (q, k, v) = (tensor::primitive(q), tensor::primitive(k), tensor::primitive(v));
    let (output, dy) = (tensor::primitive(output), tensor::primitive(dy));
    let log_sum_exp = tensor::primitive(log_sum_exp);
    let log_sum_exp = log_sum_exp.storage::<f32>();
    let (tasks, work) = tasks(&options, heads, head_dim);
    with_float!(q.dtype(), T => {
        let (q, k, v) = (q.storage::<T>(), k.storage::<T>(), v.storage::<T>());
        let (output, dy) = (output.storage::<T>(), dy.storage::<T>());
        let mut dq = vec![<T as Scalar>::from_f32(0.0); q.len()];
        // Per query head, summed over each group at the end: heads never add into one another's memory.
        let mut dk_heads = vec![0.0f32; heads * keys * head_dim];
        let mut dv_heads = dk_heads.clone();
        let dq_parts = Disjoint::new(&mut dq);
        let (dk_parts, dv_parts) = (Disjoint::new(&mut dk_heads), Disjoint::new(&mut dv_heads));
        parallel::for_each(tasks, 5 * work, |task| {
            let kv_head = task.head / (heads / kv_heads);
            let (key_count, start) = (task.keys.len(), (task.head * keys + task.keys.start) * head_dim);
            // SAFETY: this head and these keys belong to this task alone.
            let dk = unsafe { dk_parts.slice(start, key_count * head_dim) };
            // SAFETY: as above.
            let dv = unsafe { dv_parts.slice(start, key_count * head_dim) };
            let (mut keys, mut values) = (scratch::take(dk.len()), scratch::take(dk.len()));
            gather(k, task.keys.clone(), kv_head, kv_heads, head_dim, &mut keys);
            gather(v, task.keys.clone(), kv_head, kv_heads, head_dim, &mut values);
            let [mut queries, mut upstream, mut outputs] = [(); 3].map(|()| scratch::take(STRIP * head_dim));
            for Strip { rows, keys: seen } in strips(&task, &options) {
                let tokens_here = task.queries.start + rows.start..task.queries.start + rows.end;
                gather(q, tokens_here.clone(), task.head, heads, head_dim, &mut queries);
                gather(dy, tokens_here.clone(), task.head, heads, head_dim, &mut upstream);
                gather(output, tokens_here.clone(), task.head, heads, head_dim, &mut outputs);
                let (height, width) = (rows.len(), seen.len());
                let (mut p, mut ds) = (scratch::take(height * width), scratch::take(height * width));
                let key_rows = Matrix::rows(&keys[seen.start * head_dim..], head_dim);
                let value_rows = Matrix::rows(&values[seen.start * head_dim..], head_dim);
                let query_rows = Matrix::rows(&queries, head_dim);
                let upstream_rows = Matrix::rows(&upstream, head_dim);
                let (replace, add, scaling) = (Destination::Replace, Destination::Add, options.scaling);
                let scores = [height, head_dim, width];
                gemm(scores, &mut p, width, replace, scaling, query_rows, key_rows.transposed());
                gemm(scores, &mut ds, width, replace, 1.0, upstream_rows, value_rows.transposed());
                for (index, row) in rows.enumerate() {
                    let visible = options.visible(row, task.queries.len(), key_count);
                    let visible = visible.start - seen.start..visible.end - seen.start;
                    let head = index * head_dim..(index + 1) * head_dim;
                    let delta = delta(&upstream[head.clone()], &outputs[head]);
                    let lse = log_sum_exp[task.head * tokens + tokens_here.start + index];
                    let span = index * width..(index + 1) * width;
                    softmax_backward(&mut p[span.clone()], &mut ds[span], visible, lse, delta);
                }
                let (p, ds) = (Matrix::rows(&p, width), Matrix::rows(&ds, width));
                let to_keys = [width, height, head_dim];
                gemm(to_keys, &mut dv[seen.start * head_dim..], head_dim, add, 1.0, p.transposed(), upstream_rows);
                gemm(to_keys, &mut dk[seen.start * head_dim..], head_dim, add, scaling, ds.transposed(), query_rows);
                gemm([height, width, head_dim], &mut outputs, head_dim, replace, scaling, ds, key_rows);
                for (token, dq) in tokens_here.zip(outputs.chunks_exact(head_dim)) {
                    // SAFETY: this head of these tokens belongs to this task alone.
                    let out = unsafe { dq_parts.slice((token * heads + task.head) * head_dim, head_dim) };
                    narrow(dq, out);
                }
            }
        });
        let dk = sum_groups::<T>(&dk_heads, heads, kv_heads, head_dim, keys);
        let dv = sum_groups::<T>(&dv_heads, heads, kv_heads, head_dim, keys);
        let shape = [keys, kv_heads, head_dim];
        [tensor::from_vec(dq, [tokens, heads, head_dim]), tensor::from_vec(dk, shape), tensor::from_vec(dv, shape)]
    })
}

/// `[heads, keys, head_dim]` summed over the heads of each group, to `[keys, kv_heads, head_dim]`.
fn sum_groups<T: Scalar>(
    per_head: &[f32],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    keys: usize,
) -> Vec<T> {
    let group = heads / kv_heads;
    let mut out = vec![T::from_f32(0.0); keys * kv_heads * head_dim];
    let rows = parallel::rows_per_task(kv_heads * head_dim);
    let tasks = out.chunks_mut((rows * kv_heads * head_dim).max(1)).enumerate().collect();
    parallel::for_each(tasks, per_head.len(), |(task, out)| {
        let mut sum = scratch::take(head_dim);
        for (index, out) in out.chunks_exact_mut(head_dim.max(1)).enumerate() {
            let (key, kv_head) = (task * rows + index / kv_heads, index % kv_heads);
            sum.fill(0.0);
            for head in kv_head * group..(kv_head + 1) * group {
                let values = &per_head[(head * keys + key) * head_dim..][..head_dim];
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
            narrow(&sum, out);
        }
    });
    out
}

vectorized! {
    /// Turns scores into probabilities, 0 where not visible; returns ln Σ exp of the visible scores.
    fn softmax(scores: &mut [f32], visible: Range<usize>) -> f32 {
        scores[..visible.start].fill(0.0);
        scores[visible.end..].fill(0.0);
        let scores = &mut scores[visible];
        let max = math::max(scores);
        for score in scores.iter_mut() {
            *score = math::exp(*score - max);
        }
        let sum = math::sum(scores);
        let factor = 1.0 / sum;
        for score in scores.iter_mut() {
            *score *= factor;
        }
        max + sum.ln()
    }

    /// Turns scores into probabilities, and `ds`, which holds dy · v, into the gradient of the scores.
    fn softmax_backward(p: &mut [f32], ds: &mut [f32], visible: Range<usize>, lse: f32, delta: f32) {
        for hidden in [0..visible.start, visible.end..p.len()] {
            p[hidden.clone()].fill(0.0);
            ds[hidden].fill(0.0);
        }
        for (p, ds) in p[visible.clone()].iter_mut().zip(&mut ds[visible]) {
            *p = math::exp(*p - lse);
            *ds = *p * (*ds - delta);
        }
    }

    fn delta(upstream: &[f32], output: &[f32]) -> f32 {
        math::dot(upstream, output)
    }
}
