//! The decode path of attention on the CPU, for documents with a few queries each: every key and value is read once, by one
//! thread, for all heads that share it.

use std::ops::Range;

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::AttentionOptions;
use super::softmax::bound;
use crate::cpu::disjoint::Disjoint;
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::{Scalar, narrow, widen, with_float};
use crate::cpu::{math, parallel, tensor, vectorized};

/// Most queries of a document.
const MOST: usize = 4;

/// Whether a call takes the decode path: with more queries, packing keys and values pays.
pub(super) fn applies(options: &AttentionOptions) -> bool {
    options.documents.documents().all(|(queries, _)| queries.len() <= MOST)
}

/// One key-value head of one document.
struct Task {
    queries: Range<usize>,
    /// Which keys and values it has, and which rows of those.
    states: usize,
    keys: Range<usize>,
    kv_head: usize,
}

/// Keys or values of one head: a row of `head_dim` values every `stride`.
#[derive(Clone, Copy)]
struct Rows<'a, T> {
    values: &'a [T],
    stride: usize,
    head_dim: usize,
}

/// `attention` of the CPU backend, where it [`applies`].
pub(super) fn forward(
    q: &Tensor<Flex, 3>,
    k: &Tensor<Flex, 3>,
    v: &Tensor<Flex, 3>,
    options: &AttentionOptions,
) -> (Tensor<Flex, 3>, Tensor<Flex, 2>) {
    let documents = options.documents.documents().map(|(queries, keys)| (queries, 0, keys));
    run(q, &[[k.clone(), v.clone()]], documents, options)
}

/// `attention_apart` of the CPU backend; `None` where the decode path does not apply.
pub(super) fn forward_apart(
    q: &Tensor<Flex, 3>,
    states: &[[Tensor<Flex, 3>; 2]],
    options: &AttentionOptions,
) -> Option<(Tensor<Flex, 3>, Tensor<Flex, 2>)> {
    let documents = options.documents.documents().enumerate();
    let documents = documents.map(|(document, (queries, keys))| (queries, document, 0..keys.len()));
    applies(options).then(|| run(q, states, documents, options))
}

/// Documents with queries, and the keys among those of the states with a number.
fn run(
    q: &Tensor<Flex, 3>,
    states: &[[Tensor<Flex, 3>; 2]],
    documents: impl Iterator<Item = (Range<usize>, usize, Range<usize>)>,
    options: &AttentionOptions,
) -> (Tensor<Flex, 3>, Tensor<Flex, 2>) {
    let [tokens, heads, head_dim] = q.dims();
    let kv_heads = states.first().map_or(heads, |[k, _]| k.dims()[1]);
    let q = tensor::primitive(q.clone());
    let states: Vec<_> =
        states.iter().map(|state| state.each_ref().map(|rows| tensor::leading(rows.clone()))).collect();
    let group = heads / kv_heads;
    let tasks: Vec<Task> = documents
        .filter(|(queries, ..)| !queries.is_empty())
        .flat_map(|(queries, states, keys)| {
            (0..kv_heads).map(move |kv_head| Task {
                queries: queries.clone(),
                states,
                keys: keys.clone(),
                kv_head,
            })
        })
        .collect();
    let work = tasks.iter().map(|task| task.queries.len() * task.keys.len() * group * head_dim / 8).sum();
    with_float!(q.dtype(), T => {
        let q = q.storage::<T>();
        let states: Vec<[&[T]; 2]> =
            states.iter().map(|state| state.each_ref().map(|rows| rows.storage::<T>())).collect();
        let mut y = pool::take::<T>(q.len());
        let mut log_sum_exp = pool::take::<f32>(heads * tokens);
        {
            let (y, lse) = (Disjoint::new(&mut y), Disjoint::new(&mut log_sum_exp));
            parallel::share(tasks.len(), work, |number| {
                let task = &tasks[number];
                let [k, v] = states[task.states];
                let start = (task.keys.start * kv_heads + task.kv_head) * head_dim;
                let rows_of = |values| Rows { values, stride: kv_heads * head_dim, head_dim };
                let (count, keys) = (task.queries.len(), task.keys.len());
                let rows = count * group;
                // Row r is query r / group and head r % group of those that share this key-value head.
                let place = |row: usize| {
                    let (token, head) = (task.queries.start + row / group, task.kv_head * group + row % group);
                    (token, head)
                };
                let mut queries = pool::take::<f32>(rows * head_dim);
                for (row, query) in queries.chunks_exact_mut(head_dim).enumerate() {
                    let (token, head) = place(row);
                    widen(&q[(token * heads + head) * head_dim..][..head_dim], query);
                }
                let seen: Vec<Range<usize>> =
                    (0..rows).map(|row| options.visible(row / group, count, keys)).collect();
                let mut weights = pool::take::<f32>(rows * keys);
                scores(rows_of(&k[start..]), &queries, &seen, &mut weights);
                let mut sums = pool::take::<f32>(rows);
                for (row, (weights, seen)) in weights.chunks_exact_mut(keys).zip(&seen).enumerate() {
                    let weights = &mut weights[seen.clone()];
                    let scaling = bound(weights, options);
                    let (sum, most) = softmax(weights, scaling);
                    sums[row] = sum;
                    let (token, head) = place(row);
                    // SAFETY: these heads and queries belong to this task alone.
                    let lse = unsafe { lse.slice(head * tokens + token, 1) };
                    lse[0] = most + sum.ln();
                }
                let mut output: Buffer<f32> = pool::zeros(rows * head_dim);
                mix(rows_of(&v[start..]), &weights, &seen, &mut output);
                for (row, output) in output.chunks_exact_mut(head_dim).enumerate() {
                    let (token, head) = place(row);
                    divide(output, sums[row]);
                    // SAFETY: as above.
                    narrow(output, unsafe { y.slice((token * heads + head) * head_dim, head_dim) });
                }
            });
        }
        (tensor::from_buffer(y, [tokens, heads, head_dim]), tensor::from_buffer(log_sum_exp, [heads, tokens]))
    })
}

vectorized! {
    /// `queries` `[rows, head_dim]` times the keys that each sees, to `out` `[rows, keys]`.
    fn scores<T: Scalar>(keys: Rows<'_, T>, queries: &[f32], seen: &[Range<usize>], out: &mut [f32]) {
        let head_dim = keys.head_dim;
        let count = out.len() / seen.len().max(1);
        let mut wide = [0.0f32; WIDEST];
        for key in first(seen)..last(seen) {
            let row = &keys.values[key * keys.stride..][..head_dim];
            for (query, (queries, seen)) in queries.chunks_exact(head_dim).zip(seen).enumerate() {
                if !seen.contains(&key) {
                    continue;
                }
                let mut score = 0.0;
                for (row, queries) in row.chunks(WIDEST).zip(queries.chunks(WIDEST)) {
                    let wide = &mut wide[..row.len()];
                    for (wide, value) in wide.iter_mut().zip(row) {
                        *wide = value.to_f32();
                    }
                    score += math::dot(wide, queries);
                }
                out[query * count + key] = score;
            }
        }
    }

    /// Turns scores into exp(scaling · score − most). Returns their sum, and `most`.
    fn softmax(scores: &mut [f32], scaling: f32) -> (f32, f32) {
        let most = math::max(scores) * scaling;
        for score in scores.iter_mut() {
            *score = math::exp(*score * scaling - most);
        }
        (math::sum(scores), most)
    }

    /// Adds the values that each row sees, times their weights `[rows, keys]`, to `out` `[rows, head_dim]`.
    fn mix<T: Scalar>(values: Rows<'_, T>, weights: &[f32], seen: &[Range<usize>], out: &mut [f32]) {
        let head_dim = values.head_dim;
        let count = weights.len() / seen.len().max(1);
        for key in first(seen)..last(seen) {
            let row = &values.values[key * values.stride..][..head_dim];
            for (query, (out, seen)) in out.chunks_exact_mut(head_dim).zip(seen).enumerate() {
                if !seen.contains(&key) {
                    continue;
                }
                let weight = weights[query * count + key];
                for (out, value) in out.iter_mut().zip(row) {
                    *out += weight * value.to_f32();
                }
            }
        }
    }

    fn divide(values: &mut [f32], by: f32) {
        let factor = 1.0 / by;
        for value in values {
            *value *= factor;
        }
    }
}

/// Values of a head that are widened at a time.
const WIDEST: usize = 128;

fn first(seen: &[Range<usize>]) -> usize {
    seen.iter().map(|seen| seen.start).min().unwrap_or(0)
}

fn last(seen: &[Range<usize>]) -> usize {
    seen.iter().map(|seen| seen.end).max().unwrap_or(0)
}
