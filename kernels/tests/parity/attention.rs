//! Attention: documents, grouped queries, windows, key-value cache.

use burn::tensor::DType;
use burn_flex::Flex;
use tune_kernels::attention::reference::{self, Sizes};
use tune_kernels::attention::{AttentionOptions, DocumentOffsets, attention};
use tune_kernels::seed::backward_with;

use crate::support::{A, DTYPES, assert_close, gradient, random, random_in, tensor, tolerance, values};

fn cases() -> Vec<(&'static str, DocumentOffsets, Option<usize>, Sizes)> {
    let sizes = |heads, kv_heads, head_dim| Sizes { heads, kv_heads, head_dim };
    vec![
        ("one token", DocumentOffsets::packed(&[0, 1]), None, sizes(1, 1, 1)),
        ("one document", DocumentOffsets::packed(&[0, 70]), None, sizes(2, 2, 16)),
        ("several", DocumentOffsets::packed(&[0, 1, 4, 4, 70, 203]), None, sizes(4, 2, 24)),
        ("all heads share", DocumentOffsets::packed(&[0, 33, 50]), None, sizes(6, 1, 5)),
        ("window of 1", DocumentOffsets::packed(&[0, 9, 20]), Some(1), sizes(2, 1, 8)),
        ("window", DocumentOffsets::packed(&[0, 150, 290]), Some(37), sizes(3, 3, 32)),
        ("window beyond", DocumentOffsets::packed(&[0, 20]), Some(1000), sizes(1, 1, 8)),
        ("cache", DocumentOffsets::with_cache(&[0, 1, 4], &[0, 100, 130]), None, sizes(4, 2, 16)),
        ("cache, window", DocumentOffsets::with_cache(&[0, 3], &[0, 90]), Some(20), sizes(2, 1, 16)),
    ]
}

#[test]
fn forward_and_backward_agree_with_the_oracle() {
    for dtype in DTYPES {
        for (name, documents, sliding_window, sizes) in cases() {
            let what = format!("attention {name} {dtype:?}");
            let Sizes { heads, kv_heads, head_dim } = sizes;
            let (tokens, keys) = (documents.queries(), documents.keys());
            let q = random_in(tokens * heads * head_dim, 1, 2.0, dtype);
            let k = random_in(keys * kv_heads * head_dim, 2, 2.0, dtype);
            let v = random_in(keys * kv_heads * head_dim, 3, 2.0, dtype);
            let dy = random_in(q.len(), 4, 1.0, dtype);
            let options = AttentionOptions { documents: documents.clone(), scaling: 0.4, sliding_window };
            let expected = reference::forward(&q, &k, &v, &options, sizes);
            let slopes = reference::backward(&q, &k, &v, &dy, &options, sizes);

            let q = tensor::<A, 3>(&q, [tokens, heads, head_dim], dtype).require_grad();
            let k = tensor::<A, 3>(&k, [keys, kv_heads, head_dim], dtype).require_grad();
            let v = tensor::<A, 3>(&v, [keys, kv_heads, head_dim], dtype).require_grad();
            let y = attention(q.clone(), k.clone(), v.clone(), &documents, 0.4, sliding_window);
            assert_eq!(y.dtype(), dtype, "{what}");
            assert_close(&what, &values(&y), &expected, tolerance(dtype));
            let gradients = backward_with(y, tensor::<Flex, 3>(&dy, [tokens, heads, head_dim], dtype));
            // A query that sees one key has no slope in q and k: what is found there is rounding, and is measured
            // against dv.
            for (part, leaf, expected) in [("q", &q, &slopes.q), ("k", &k, &slopes.k), ("v", &v, &slopes.v)] {
                let found = gradient(leaf, &gradients);
                if expected.iter().all(|x| *x == 0.0) {
                    assert!(
                        found.iter().all(|x| x.abs() <= 10.0 * tolerance(dtype) as f32),
                        "d{part}, {what}"
                    );
                } else {
                    // The rounded output enters δ: one more rounding than in the others.
                    assert_close(&format!("d{part}, {what}"), &found, expected, 2.0 * tolerance(dtype));
                }
            }
        }
    }
}

/// New tokens beside a cache give what the whole document gives.
#[test]
fn cached_steps_equal_the_whole() {
    let (tokens, heads, kv_heads, head_dim) = (40, 4, 2, 16);
    let q = random(tokens * heads * head_dim, 1, 1.0);
    let [k, v] = [2, 3].map(|seed| random(tokens * kv_heads * head_dim, seed, 1.0));
    let all = |values: &[f32], heads: usize, range: std::ops::Range<usize>| {
        let row = heads * head_dim;
        tensor::<Flex, 3>(
            &values[range.start * row..range.end * row],
            [range.len(), heads, head_dim],
            DType::F32,
        )
    };
    let whole = attention(
        all(&q, heads, 0..tokens),
        all(&k, kv_heads, 0..tokens),
        all(&v, kv_heads, 0..tokens),
        &DocumentOffsets::packed(&[0, tokens as u32]),
        0.25,
        Some(30),
    );
    let whole = values(&whole);
    for (seen, end) in [(0, 25), (25, 26), (26, 40)] {
        let documents = DocumentOffsets::with_cache(&[0, (end - seen) as u32], &[0, end as u32]);
        let part = attention(
            all(&q, heads, seen..end),
            all(&k, kv_heads, 0..end),
            all(&v, kv_heads, 0..end),
            &documents,
            0.25,
            Some(30),
        );
        let row = heads * head_dim;
        assert_close(&format!("{seen}..{end}"), &values(&part), &whole[seen * row..end * row], 1e-6);
    }
}

/// Huge scores neither overflow nor lose the largest.
#[test]
fn large_scores_are_stable() {
    let q = tensor::<Flex, 3>(&[100.0, 100.0], [2, 1, 1], DType::F32);
    let k = tensor::<Flex, 3>(&[100.0, -100.0], [2, 1, 1], DType::F32);
    let v = tensor::<Flex, 3>(&[3.0, 5.0], [2, 1, 1], DType::F32);
    let y = attention(q, k, v, &DocumentOffsets::packed(&[0, 2]), 1.0, None);
    assert_eq!(values(&y), [3.0, 3.0]);
}
