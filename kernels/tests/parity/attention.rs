//! Attention: documents, grouped queries, windows, key-value cache.

use burn_tensor::{DType, Tensor};
use tune_kernels::KernelBackend;
use tune_kernels::attention::reference::Sizes;
use tune_kernels::attention::{AttentionOptions, DocumentOffsets, attention, attention_apart};
use tune_kernels::check::{
    self,
    attention::{CAP, SCALING},
};

use crate::support::{Site, assert_close, assert_within, everywhere, random, tensor, values};

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
        ("long", DocumentOffsets::packed(&[0, 1100]), None, sizes(2, 1, 8)),
        ("long, shared", DocumentOffsets::packed(&[0, 1031, 1040]), None, sizes(2, 1, 16)),
        ("long, window", DocumentOffsets::packed(&[0, 30, 1200]), Some(600), sizes(1, 1, 16)),
        ("wide heads", DocumentOffsets::packed(&[0, 61]), None, sizes(2, 1, 256)),
        ("one query", DocumentOffsets::with_cache(&[0, 1], &[0, 700]), None, sizes(6, 2, 64)),
        ("one query, window", DocumentOffsets::with_cache(&[0, 1], &[0, 91]), Some(40), sizes(4, 4, 160)),
        ("few queries", DocumentOffsets::with_cache(&[0, 4, 7], &[0, 50, 200]), None, sizes(5, 1, 20)),
        ("few queries, window", DocumentOffsets::with_cache(&[0, 3], &[0, 90]), Some(20), sizes(2, 2, 33)),
        ("cache, window", DocumentOffsets::with_cache(&[0, 3], &[0, 90]), Some(20), sizes(2, 1, 16)),
        ("head of 64", DocumentOffsets::packed(&[0, 65, 70, 113]), None, sizes(2, 1, 64)),
        ("head of 96", DocumentOffsets::packed(&[0, 83]), None, sizes(2, 1, 96)),
        ("head of 128", DocumentOffsets::packed(&[0, 67]), Some(40), sizes(2, 1, 128)),
        ("head of 512", DocumentOffsets::packed(&[0, 37]), Some(20), sizes(2, 1, 512)),
        ("head of 40", DocumentOffsets::packed(&[0, 35]), None, sizes(1, 1, 40)),
        ("4 share", DocumentOffsets::packed(&[0, 21, 50, 51, 130]), Some(33), sizes(8, 2, 64)),
        ("prefix", pair(90, 17, 23), None, sizes(4, 2, 16)),
        ("prefix, window", pair(61, 40, 9), Some(25), sizes(6, 2, 24)),
        ("prefix and few queries", pair(150, 1, 3), None, sizes(3, 1, 64)),
        ("long prefix", pair(1100, 5, 60), None, sizes(2, 1, 8)),
        (
            "prefixes",
            DocumentOffsets::with_prefixes(&[0, 33, 40, 40, 71, 80], &[0..0, 0..30, 0..1, 40..40, 40..70]),
            Some(40),
            sizes(8, 2, 40),
        ),
        (
            "4 share, cache",
            DocumentOffsets::with_cache(&[0, 17, 17, 20], &[0, 81, 90, 129]),
            Some(50),
            sizes(4, 1, 64),
        ),
    ]
}

/// Two documents of one prefix: the first holds its rows, the second begins with them.
fn pair(prefix: u32, first: u32, second: u32) -> DocumentOffsets {
    DocumentOffsets::with_prefixes(&[0, prefix + first, prefix + first + second], &[0..0, 0..prefix])
}

#[test]
fn forward_and_backward_agree_with_the_oracle() {
    everywhere!(check_cases);
}

fn check_cases<B: KernelBackend>(site: &Site) {
    // Each width of a head is a kernel of its own in each dtype; in 16 bits these have one of each kind.
    let in_16_bits =
        ["several", "window", "wide heads", "one query, window", "head of 128", "4 share, cache", "prefixes"];
    for dtype in site.dtypes.clone() {
        for (name, documents, sliding_window, sizes) in cases() {
            let keys = documents.keys();
            let is_wanted =
                dtype == DType::F32 || site.has_time_for_every_variant() || in_16_bits.contains(&name);
            if !is_wanted || !site.has_time_for(keys * keys * sizes.heads * sizes.head_dim) {
                continue;
            }
            let (device, what) = (B::Device::default(), format!("attention in {dtype:?} on {}", site.name));
            let on = Site::on::<B>(&device, dtype);
            let options = AttentionOptions { documents, scaling: SCALING, sliding_window, soft_cap: None };
            assert_within(&what, check::attention::check(on, name, &options, sizes));
        }
    }
}

/// The cases of one document, of short ones, of a window, of one query beside a cache, of few and of many.
#[test]
fn capped_scores_agree_with_the_oracle() {
    everywhere!(check_capped);
}

fn check_capped<B: KernelBackend>(site: &Site) {
    let capped = [
        "one token",
        "several",
        "window",
        "wide heads",
        "one query, window",
        "4 share",
        "4 share, cache",
        "head of 40",
    ];
    for dtype in site.dtypes.clone() {
        for (name, documents, sliding_window, sizes) in cases() {
            if !capped.contains(&name) {
                continue;
            }
            let (device, what) = (B::Device::default(), format!("capped in {dtype:?} on {}", site.name));
            let on = Site::on::<B>(&device, dtype);
            let options =
                AttentionOptions { documents, scaling: SCALING, sliding_window, soft_cap: Some(CAP) };
            assert_within(&what, check::attention::check(on, name, &options, sizes));
        }
    }
}

/// New tokens beside a cache give what the whole document gives.
#[test]
fn cached_steps_equal_the_whole() {
    everywhere!(check_cached_steps);
}

fn check_cached_steps<B: KernelBackend>(_: &Site) {
    let (tokens, heads, kv_heads, head_dim) = (40, 4, 2, 16);
    let q = random(tokens * heads * head_dim, 1, 1.0);
    let [k, v] = [2, 3].map(|seed| random(tokens * kv_heads * head_dim, seed, 1.0));
    let all = |values: &[f32], heads: usize, range: std::ops::Range<usize>| {
        let row = heads * head_dim;
        tensor::<B, 3>(
            &values[range.start * row..range.end * row],
            [range.len(), heads, head_dim],
            DType::F32,
        )
    };
    let options =
        |documents| AttentionOptions { documents, scaling: 0.25, sliding_window: Some(30), soft_cap: None };
    let (whole, _) = attention(
        &all(&q, heads, 0..tokens),
        &all(&k, kv_heads, 0..tokens),
        &all(&v, kv_heads, 0..tokens),
        &options(DocumentOffsets::packed(&[0, tokens as u32])),
    );
    let whole = values(&whole);
    for (seen, end) in [(0, 25), (25, 26), (26, 40)] {
        let documents = DocumentOffsets::with_cache(&[0, (end - seen) as u32], &[0, end as u32]);
        let (part, _) = attention(
            &all(&q, heads, seen..end),
            &all(&k, kv_heads, 0..end),
            &all(&v, kv_heads, 0..end),
            &options(documents),
        );
        let row = heads * head_dim;
        assert_close(&format!("{seen}..{end}"), &values(&part), &whole[seen * row..end * row], 1e-6);
    }
}

/// Huge scores neither overflow nor lose the largest.
#[test]
fn large_scores_are_stable() {
    everywhere!(check_large_scores);
}

fn check_large_scores<B: KernelBackend>(_: &Site) {
    let q = tensor::<B, 3>(&[100.0, 100.0], [2, 1, 1], DType::F32);
    let k = tensor::<B, 3>(&[100.0, -100.0], [2, 1, 1], DType::F32);
    let v = tensor::<B, 3>(&[3.0, 5.0], [2, 1, 1], DType::F32);
    let documents = DocumentOffsets::packed(&[0, 2]);
    let (y, _) = attention(
        &q,
        &k,
        &v,
        &AttentionOptions { documents, scaling: 1.0, sliding_window: None, soft_cap: None },
    );
    assert_eq!(values(&y), [3.0, 3.0]);
}

#[test]
fn documents_with_keys_of_their_own_equal_those_side_by_side() {
    everywhere!(check_apart);
}

fn check_apart<B: KernelBackend>(site: &Site) {
    let (heads, kv_heads, head_dim) = (6, 2, 40);
    // A query each, as in decoding, and more than the decode path takes.
    for (queries, keys) in [(vec![0, 1, 2, 3], vec![0, 70, 71, 204]), (vec![0, 3, 9], vec![0, 100, 107])] {
        let documents = DocumentOffsets::with_cache(&queries, &keys);
        for dtype in site.dtypes.clone() {
            for sliding_window in [None, Some(33)] {
                let documents = documents.clone();
                let rows = |seed, rows: usize, heads: usize| {
                    let values = random(rows * heads * head_dim, seed, 1.0);
                    tensor::<B, 3>(&values, [rows, heads, head_dim], dtype)
                };
                let q = rows(1, documents.queries(), heads);
                let [k, v] = [2, 3].map(|seed| rows(seed, documents.keys(), kv_heads));
                let states: Vec<_> = documents
                    .documents()
                    .map(|(_, keys)| [&k, &v].map(|all| all.clone().narrow(0, keys.start, keys.len())))
                    .collect();
                let options =
                    AttentionOptions { documents, scaling: SCALING, sliding_window, soft_cap: None };
                let (y, sums) = attention(&q, &k, &v, &options);
                let (y_apart, sums_apart) = attention_apart(&q, &states, &options);
                let what = format!("{dtype:?}, {queries:?}, {sliding_window:?} on {}", site.name);
                let tolerance = if dtype == DType::F32 { 1e-6 } else { 1e-2 };
                let wide = |x: Tensor<B, 3>| values(&x.cast(DType::F32));
                assert_close(&what, &wide(y_apart), &wide(y), tolerance);
                assert_close(&what, &values(&sums_apart), &values(&sums), tolerance);
            }
        }
    }
}

/// Documents that share a prefix give what each gives with a copy of it.
#[test]
fn a_shared_prefix_equals_its_copies() {
    everywhere!(check_copies);
}

fn check_copies<B: KernelBackend>(_: &Site) {
    let (heads, kv_heads, head_dim) = (4, 2, 16);
    let (prefix, first, second) = (50, 12, 20);
    let rows = prefix + first + second;
    let q = random(rows * heads * head_dim, 1, 1.0);
    let [k, v] = [2, 3].map(|seed| random(rows * kv_heads * head_dim, seed, 1.0));
    let whole = |values: &[f32], heads: usize, parts: &[std::ops::Range<usize>]| {
        let row = heads * head_dim;
        let values: Vec<f32> =
            parts.iter().flat_map(|part| values[part.start * row..part.end * row].to_vec()).collect();
        let rows = values.len() / row;
        tensor::<B, 3>(&values, [rows, heads, head_dim], DType::F32)
    };
    let run = |parts: &[std::ops::Range<usize>], documents| {
        let options = AttentionOptions { documents, scaling: 0.25, sliding_window: None, soft_cap: None };
        let (y, _) = attention(
            &whole(&q, heads, parts),
            &whole(&k, kv_heads, parts),
            &whole(&v, kv_heads, parts),
            &options,
        );
        values(&y)
    };
    let shared = run(std::slice::from_ref(&(0..rows)), pair(prefix as u32, first as u32, second as u32));
    let copies = run(
        &[0..prefix + first, 0..prefix, prefix + first..rows],
        DocumentOffsets::packed(&[0, (prefix + first) as u32, (rows + prefix) as u32]),
    );
    let row = heads * head_dim;
    assert_close("first", &shared[..(prefix + first) * row], &copies[..(prefix + first) * row], 1e-6);
    assert_close("second", &shared[(prefix + first) * row..], &copies[(2 * prefix + first) * row..], 1e-6);
}
