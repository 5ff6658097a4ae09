//! The slow oracle of attention: every score of every head, f32 in, f64 inside, f32 out.

use super::AttentionOptions;

/// Sizes of one call.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Dimensions per head.
    pub head_dim: usize,
}

/// Gradients of q, k and v.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Like q.
    pub q: Vec<f32>,
    /// Like k.
    pub k: Vec<f32>,
    /// Like v.
    pub v: Vec<f32>,
}

/// `y` for `q` `[tokens, heads, head_dim]`, `k` and `v` `[keys, kv_heads, head_dim]`.
pub fn forward(q: &[f32], k: &[f32], v: &[f32], options: &AttentionOptions, sizes: Sizes) -> Vec<f32> {
    let mut y = vec![0.0f64; q.len()];
    each_query(q, k, options, sizes, |at, probabilities| {
        for (key, p) in probabilities {
            for i in 0..sizes.head_dim {
                y[at.query + i] += p * f64::from(v[key + i]);
            }
        }
    });
    y.into_iter().map(|value| value as f32).collect()
}

/// Gradients for upstream `dy`, shaped like `q`.
pub fn backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    dy: &[f32],
    options: &AttentionOptions,
    sizes: Sizes,
) -> Gradients {
    let (mut dq, mut dk, mut dv) = (vec![0.0f64; q.len()], vec![0.0f64; k.len()], vec![0.0f64; v.len()]);
    each_query(q, k, options, sizes, |at, probabilities| {
        let dy = &dy[at.query..at.query + sizes.head_dim];
        let dp = |key: usize| dot(dy, &v[key..key + sizes.head_dim]);
        let delta: f64 = probabilities.iter().map(|(key, p)| p * dp(*key)).sum();
        for (key, p) in probabilities {
            let ds = p * (dp(*key) - delta) * f64::from(options.scaling);
            for i in 0..sizes.head_dim {
                dq[at.query + i] += ds * f64::from(k[key + i]);
                dk[key + i] += ds * f64::from(q[at.query + i]);
                dv[key + i] += p * f64::from(dy[i]);
            }
        }
    });
    let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
    Gradients { q: single(dq), k: single(dk), v: single(dv) }
}

struct At {
    /// Where the query's head begins in `q`.
    query: usize,
}

/// Calls `body` for every query of every head with (where the key's head begins in `k`, probability).
fn each_query(
    q: &[f32],
    k: &[f32],
    options: &AttentionOptions,
    sizes: Sizes,
    mut body: impl FnMut(At, &[(usize, f64)]),
) {
    let Sizes { heads, kv_heads, head_dim } = sizes;
    for (queries, keys) in options.documents.documents() {
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            for index in 0..queries.len() {
                let query = ((queries.start + index) * heads + head) * head_dim;
                let position = keys.len() - queries.len() + index;
                let mut scores = Vec::new();
                for key in 0..keys.len() {
                    let in_window = options.sliding_window.is_none_or(|window| position < key + window);
                    if key <= position && in_window {
                        let key = ((keys.start + key) * kv_heads + kv_head) * head_dim;
                        let score = dot(&q[query..query + head_dim], &k[key..key + head_dim]);
                        scores.push((key, score * f64::from(options.scaling)));
                    }
                }
                let max = scores.iter().fold(f64::NEG_INFINITY, |max, (_, score)| max.max(*score));
                let sum: f64 = scores.iter().map(|(_, score)| (score - max).exp()).sum();
                for (_, score) in &mut scores {
                    *score = (*score - max).exp() / sum;
                }
                body(At { query }, &scores);
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
