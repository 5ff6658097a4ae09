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
        for Seen { key, p, .. } in probabilities {
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
        let delta: f64 = probabilities.iter().map(|seen| seen.p * dp(seen.key)).sum();
        for Seen { key, p, slope } in probabilities {
            let ds = p * (dp(*key) - delta) * slope;
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

/// A key that a query sees.
struct Seen {
    /// Where its head begins in `k`.
    key: usize,
    /// Its probability.
    p: f64,
    /// The slope of the score in q · k.
    slope: f64,
}

/// Calls `body` for every query of every head with the keys that it sees.
fn each_query(
    q: &[f32],
    k: &[f32],
    options: &AttentionOptions,
    sizes: Sizes,
    mut body: impl FnMut(At, &[Seen]),
) {
    let Sizes { heads, kv_heads, head_dim } = sizes;
    for (document, (queries, own)) in options.documents.documents().enumerate() {
        let keys: Vec<usize> = options.documents.prefix(document).chain(own).collect();
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            for index in 0..queries.len() {
                let query = ((queries.start + index) * heads + head) * head_dim;
                let position = keys.len() - queries.len() + index;
                let mut scores = Vec::new();
                for (place, row) in keys.iter().enumerate() {
                    let in_window = options.sliding_window.is_none_or(|window| position < place + window);
                    if place <= position && in_window {
                        let key = (row * kv_heads + kv_head) * head_dim;
                        let score = dot(&q[query..query + head_dim], &k[key..key + head_dim]);
                        let (p, slope) = bounded(score, options);
                        scores.push(Seen { key, p, slope });
                    }
                }
                let max = scores.iter().fold(f64::NEG_INFINITY, |max, seen| max.max(seen.p));
                let sum: f64 = scores.iter().map(|seen| (seen.p - max).exp()).sum();
                for seen in &mut scores {
                    seen.p = (seen.p - max).exp() / sum;
                }
                body(At { query }, &scores);
            }
        }
    }
}

/// The score for q · k, scaled and capped, and its slope.
fn bounded(product: f64, options: &AttentionOptions) -> (f64, f64) {
    let scaling = f64::from(options.scaling);
    match options.soft_cap.map(f64::from) {
        Some(cap) => {
            let t = (scaling * product / cap).tanh();
            (cap * t, scaling * (1.0 - t * t))
        }
        None => (scaling * product, scaling),
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
