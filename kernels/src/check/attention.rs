//! Attention: documents, grouped queries, windows, key-value cache, capped scores.

use super::measure::{Deviation, On, values};
use crate::KernelBackend;
use crate::attention::reference::{self, Sizes};
use crate::attention::{AttentionBackward, AttentionOptions, DocumentOffsets, attention, attention_backward};

/// Factor of the scores in every case.
pub const SCALING: f32 = 0.4;
/// A cap that bends many scores.
pub const CAP: f32 = 3.0;

pub(super) fn all<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let sizes = |heads, kv_heads, head_dim| Sizes { heads, kv_heads, head_dim };
    let cases = [
        ("several documents", DocumentOffsets::packed(&[0, 1, 4, 4, 70, 133]), None, sizes(4, 2, 24)),
        ("a window", DocumentOffsets::packed(&[0, 50, 90]), Some(17), sizes(3, 3, 32)),
        ("a cache", DocumentOffsets::with_cache(&[0, 1, 4], &[0, 100, 130]), None, sizes(4, 2, 64)),
        ("wide heads", DocumentOffsets::packed(&[0, 41]), None, sizes(2, 1, 128)),
        ("a shared prefix", sharing(), Some(30), sizes(4, 2, 32)),
    ];
    let mut deviations = Vec::new();
    for (name, documents, sliding_window, sizes) in cases {
        let options = AttentionOptions { documents, scaling: SCALING, sliding_window, soft_cap: None };
        deviations.extend(check(on, name, &options, sizes));
        if sliding_window.is_some() {
            deviations.extend(check(
                on,
                "a cap",
                &AttentionOptions { soft_cap: Some(CAP), ..options },
                sizes,
            ));
        }
    }
    deviations
}

/// Two documents that begin with most of a first one, beside one of their own.
fn sharing() -> DocumentOffsets {
    DocumentOffsets::with_prefixes(&[0, 45, 58, 59, 76], &[0..0, 0..39, 0..39, 0..0])
}

/// [`attention`] and its backward.
pub fn check<B: KernelBackend>(
    on: On<'_, B>,
    name: &str,
    options: &AttentionOptions,
    sizes: Sizes,
) -> Vec<Deviation> {
    let Sizes { heads, kv_heads, head_dim } = sizes;
    let (tokens, keys) = (options.documents.queries(), options.documents.keys());
    let case = format!("{name}, {tokens} x {keys}, {heads} heads over {kv_heads} of {head_dim}");
    let q = on.random(tokens * heads * head_dim, 1, 2.0);
    let k = on.random(keys * kv_heads * head_dim, 2, 2.0);
    let v = on.random(keys * kv_heads * head_dim, 3, 2.0);
    let dy = on.random(q.len(), 4, 1.0);
    let expected = reference::forward(&q, &k, &v, options, sizes);
    let slopes = reference::backward(&q, &k, &v, &dy, options, sizes);

    let q = on.tensor::<3>(&q, [tokens, heads, head_dim]);
    let k = on.tensor::<3>(&k, [keys, kv_heads, head_dim]);
    let v = on.tensor::<3>(&v, [keys, kv_heads, head_dim]);
    let (output, log_sum_exp) = attention(&q, &k, &v, options);
    let dy = on.tensor::<3>(&dy, [tokens, heads, head_dim]);
    let request = AttentionBackward {
        q: &q,
        k: &k,
        v: &v,
        output: &output,
        log_sum_exp: &log_sum_exp,
        options,
        dy: &dy,
    };
    let found = attention_backward(request);
    // Scores of wide heads are longer sums, and rounding grows with the root of their length.
    let tolerance = on.tolerance() * (sizes.head_dim as f64 / 256.0).sqrt().max(1.0);
    let mut deviations = vec![Deviation::new("y", &case, &values(&output), &expected, tolerance)];
    let expected = [("dq", &slopes.q), ("dk", &slopes.k), ("dv", &slopes.v)];
    for ((part, expected), found) in expected.into_iter().zip(&found) {
        // A query that sees one key has no slope in q and k: what is found there is rounding, and is measured against
        // dv. Elsewhere the rounded output enters δ: one more rounding than in the others.
        let room = if expected.iter().all(|x| *x == 0.0) { 10.0 } else { 2.0 };
        deviations.push(Deviation::new(part, &case, &values(found), expected, room * tolerance));
    }
    deviations
}
