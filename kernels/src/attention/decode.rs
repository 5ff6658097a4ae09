//! The decode path of attention on the CPU, for documents with a few queries each: every key and value is read once, by one
//! thread, for all heads that share it.
//!
//! Keys are parted into stretches of one length, whatever the number of threads. The output of each stretch is that of
//! attention to its keys alone; they are joined by the exponentials of their highest scores, as in Dao et al.,
//! *Flash-Decoding* (<https://crfm.stanford.edu/2023/10/12/flashdecoding.html>).

use std::ops::Range;

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::AttentionOptions;
#[cfg(target_arch = "x86_64")]
use super::decode_avx512 as by_hand;
use super::softmax::bound;
use crate::cpu::disjoint::Disjoint;
use crate::cpu::pool;
use crate::cpu::scalar::{Scalar, narrow, widen, with_float};
use crate::cpu::{math, parallel, tensor, vectorized};

/// Most queries of a document.
const MOST: usize = 4;
/// Keys of a stretch.
const STRETCH: usize = 128;

/// Whether a call takes the decode path: with more queries, packing keys and values pays.
pub(super) fn applies(options: &AttentionOptions) -> bool {
    options.documents.documents().all(|(queries, _)| queries.len() <= MOST)
}

/// One key-value head of one document.
struct Head {
    queries: Range<usize>,
    /// Which keys and values it has, and which rows of those.
    states: usize,
    keys: Range<usize>,
    kv_head: usize,
    /// Its first row among those of all heads and stretches.
    first: usize,
}

/// Keys or values of one head: a row of `head_dim` values every `stride`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    pub(super) values: &'a [T],
    pub(super) stride: usize,
    pub(super) head_dim: usize,
}

impl<'a, T> Rows<'a, T> {
    pub(super) fn row(&self, number: usize) -> &'a [T] {
        &self.values[number * self.stride..][..self.head_dim]
    }
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
    let (mut found, mut tasks, mut rows, mut work) = (Vec::new(), Vec::new(), 0, 0);
    for (queries, states, keys) in documents.filter(|(queries, ..)| !queries.is_empty()) {
        work += queries.len() * keys.len() * heads * head_dim / 2;
        for kv_head in 0..kv_heads {
            let stretches = keys.len().div_ceil(STRETCH);
            tasks.extend((0..stretches).map(|stretch| (found.len(), stretch)));
            let (queries, keys, first) = (queries.clone(), keys.clone(), rows);
            rows += stretches * queries.len() * group;
            found.push(Head { queries, states, keys, kv_head, first });
        }
    }
    with_float!(q.dtype(), T => {
        let q = q.storage::<T>();
        let states: Vec<[&[T]; 2]> =
            states.iter().map(|state| state.each_ref().map(|rows| rows.storage::<T>())).collect();
        // Of each row of each stretch the output, and in front of it the sum of exponentials and the highest score.
        let mut parts = pool::take::<f32>(rows * (2 + head_dim));
        let width = 2 + head_dim;
        let mut y = pool::take::<T>(q.len());
        let mut log_sum_exp = pool::take::<f32>(heads * tokens);
        let shared = Disjoint::new(&mut parts);
        parallel::share(tasks.len(), work, |number| {
            let (head, stretch) = tasks[number];
            let head = &found[head];
            let count = head.queries.len();
            let own = head.first + stretch * count * group;
            // SAFETY: these rows belong to this task alone.
            let parts = unsafe { shared.slice(own * width, count * group * width) };
            let start = (head.keys.start * kv_heads + head.kv_head) * head_dim;
            let [k, v] = states[head.states]
                .map(|values| Rows { values: &values[start..], stride: kv_heads * head_dim, head_dim });
            for (query, parts) in parts.chunks_exact_mut(group * width).enumerate() {
                let seen = options.visible(query, count, head.keys.len());
                let inside = |key: usize| key.clamp(stretch * STRETCH, (stretch + 1) * STRETCH);
                let seen = inside(seen.start)..inside(seen.end);
                let first = ((head.queries.start + query) * heads + head.kv_head * group) * head_dim;
                part(&q[first..][..group * head_dim], [k, v], seen, options, parts);
            }
        });
        let (outputs, sums) = (Disjoint::new(&mut y), Disjoint::new(&mut log_sum_exp));
        parallel::share(found.len(), 2 * rows * width, |number| {
            let head = &found[number];
            let count = head.queries.len();
            let stretches = head.keys.len().div_ceil(STRETCH);
            for row in 0..count * group {
                let rows = (0..stretches).map(|stretch| head.first + stretch * count * group + row);
                // SAFETY: the jobs that wrote them are done, and this task alone has this head's.
                let own = rows.map(|row| &*unsafe { shared.slice(row * width, width) });
                let (token, head) = (head.queries.start + row / group, head.kv_head * group + row % group);
                // SAFETY: these heads and queries belong to this task alone.
                let y = unsafe { outputs.slice((token * heads + head) * head_dim, head_dim) };
                // SAFETY: as above.
                let lse = unsafe { sums.slice(head * tokens + token, 1) };
                lse[0] = join(own, y);
            }
        });
        (tensor::from_buffer(y, [tokens, heads, head_dim]), tensor::from_buffer(log_sum_exp, [heads, tokens]))
    })
}

/// The heads of one query, `[group, head_dim]`, with the keys that it sees in a stretch: `parts` `[group, 2 + head_dim]`.
fn part<T: Scalar>(
    q: &[T],
    [k, v]: [Rows<'_, T>; 2],
    seen: Range<usize>,
    options: &AttentionOptions,
    parts: &mut [f32],
) {
    let (group, count, width) = (q.len() / k.head_dim, seen.len(), 2 + k.head_dim);
    let mut queries = pool::take::<f32>(q.len());
    widen(q, &mut queries);
    let mut weights = pool::take::<f32>(group * count);
    scores(k, &queries, seen.clone(), &mut weights);
    for (head, parts) in parts.chunks_exact_mut(width).enumerate() {
        let weights = &mut weights[head * count..][..count];
        let scaling = bound(weights, options);
        let (sum, most) = softmax(weights, scaling);
        (parts[0], parts[1]) = (sum, most);
    }
    mix(v, &weights, seen, parts);
}

/// `queries` `[group, head_dim]` times the keys that they see, to `out` `[group, seen]`.
fn scores<T: Scalar>(keys: Rows<'_, T>, queries: &[f32], seen: Range<usize>, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::fast::available() {
        return by_hand::scores(keys, queries, seen, out);
    }
    plain_scores(keys, queries, seen, out);
}

/// The values that are seen, times their weights `[group, seen]`, to `parts` `[group, 2 + head_dim]`.
fn mix<T: Scalar>(values: Rows<'_, T>, weights: &[f32], seen: Range<usize>, parts: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::fast::available() {
        return by_hand::mix(values, weights, seen, parts);
    }
    plain_mix(values, weights, seen, parts);
}

vectorized! {
    fn plain_scores<T: Scalar>(keys: Rows<'_, T>, queries: &[f32], seen: Range<usize>, out: &mut [f32]) {
        let head_dim = keys.head_dim;
        let (first, count) = (seen.start, seen.len());
        let mut wide = [0.0f32; WIDEST];
        for key in seen {
            for (query, queries) in queries.chunks_exact(head_dim).enumerate() {
                let mut score = 0.0;
                for (row, queries) in keys.row(key).chunks(WIDEST).zip(queries.chunks(WIDEST)) {
                    let wide = &mut wide[..row.len()];
                    for (wide, value) in wide.iter_mut().zip(row) {
                        *wide = value.to_f32();
                    }
                    score += math::dot(wide, queries);
                }
                out[query * count + key - first] = score;
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

    fn plain_mix<T: Scalar>(values: Rows<'_, T>, weights: &[f32], seen: Range<usize>, parts: &mut [f32]) {
        let width = 2 + values.head_dim;
        let count = seen.len();
        for parts in parts.chunks_exact_mut(width) {
            parts[2..].fill(0.0);
        }
        for (number, key) in seen.enumerate() {
            for (query, parts) in parts.chunks_exact_mut(width).enumerate() {
                let weight = weights[query * count + number];
                for (out, value) in parts[2..].iter_mut().zip(values.row(key)) {
                    *out += weight * value.to_f32();
                }
            }
        }
    }

    fn add_scaled(sum: &mut [f32], factor: f32, values: &[f32]) {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += factor * value;
        }
    }

    fn scale(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }
}

/// Values of a head that are widened at a time.
const WIDEST: usize = 128;

/// Joins the parts of one row into `y`; returns its ln Σ exp.
fn join<'a, T: Scalar>(parts: impl Iterator<Item = &'a [f32]> + Clone, y: &mut [T]) -> f32 {
    // What a stretch of which nothing is seen left is no number.
    let parts = parts.filter(|part| part[0] != 0.0);
    let most = parts.clone().map(|part| part[1]).fold(f32::NEG_INFINITY, f32::max);
    let mut output = pool::zeros::<f32>(y.len());
    let mut sum = 0.0;
    for part in parts {
        let factor = math::exp(part[1] - most);
        sum += factor * part[0];
        add_scaled(&mut output, factor, &part[2..]);
    }
    scale(&mut output, 1.0 / sum);
    narrow(&output, y);
    most + sum.ln()
}

/// `write_rows` of the CPU backend. burn-flex's own assignment copies the whole tensor.
pub(super) fn write_rows(room: Tensor<Flex, 3>, first: usize, rows: Tensor<Flex, 3>) -> Tensor<Flex, 3> {
    let [_, heads, head_dim] = room.dims();
    let (mut room, rows) = (tensor::owned(room), tensor::primitive(rows));
    with_float!(rows.dtype(), T => {
        let rows = rows.storage::<T>();
        room.storage_mut::<T>()[first * heads * head_dim..][..rows.len()].copy_from_slice(rows);
    });
    tensor::from_flex(room)
}

#[cfg(test)]
mod tests {
    use burn_tensor::DType;

    use super::*;

    #[test]
    fn rows_are_written_in_place_unless_another_holds_the_room() {
        let numbers = |from: usize, rows: usize| {
            let values: Vec<f32> = (from..from + rows * 6).map(|value| value as f32).collect();
            tensor::from_vec(values, [rows, 2, 3])
        };
        let address = |room: &Tensor<Flex, 3>| tensor::primitive(room.clone()).bytes().as_ptr();
        let room: Tensor<Flex, 3> = Tensor::zeros([5, 2, 3], (&Default::default(), DType::F32));
        let place = address(&room);
        let room = write_rows(room, 2, numbers(1, 2));
        assert_eq!(address(&room), place);
        let held = room.clone();
        let other = write_rows(room, 0, numbers(100, 1));
        assert_ne!(address(&other), place);
        let rows = |room: Tensor<Flex, 3>| tensor::primitive(room).storage::<f32>().to_vec();
        let one_to_twelve: Vec<f32> = (1..13).map(|value| value as f32).collect();
        assert_eq!(rows(held), [vec![0.0; 12], one_to_twelve.clone(), vec![0.0; 6]].concat());
        let hundreds = (100..106).map(|value| value as f32).collect();
        assert_eq!(rows(other), [hundreds, vec![0.0; 6], one_to_twelve, vec![0.0; 6]].concat());
    }
}
