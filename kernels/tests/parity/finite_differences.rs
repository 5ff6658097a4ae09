//! The oracles' gradients against finite differences of their forwards.

use tune_kernels::activation::Function;
use tune_kernels::attention::{AttentionOptions, DocumentOffsets};
use tune_kernels::delta_rule::DeltaHeads;
use tune_kernels::gated::{self, Activation};
use tune_kernels::linear::reference::LoraSlices;
use tune_kernels::linear_cross_entropy::Logits;
use tune_kernels::linear_cross_entropy::reference::Rows;
use tune_kernels::rope::Pairs;
use tune_kernels::{
    activation, attention, causal_conv, check, delta_rule, layer_norm, linear, linear_cross_entropy,
    rms_norm, rope, router, row_scale,
};

use crate::support::random;

/// Checks `slope` of Σ weights · f(x) by central differences. f works in f64 but gives f32, which limits how far
/// the two can agree.
fn agrees(what: &str, x: &[f32], upstream: &[f32], slope: &[f32], f: impl Fn(&[f32]) -> Vec<f32>) {
    let objective = |x: &[f32]| -> f64 {
        f(x).iter().zip(upstream).map(|(y, upstream)| f64::from(*y) * f64::from(*upstream)).sum()
    };
    for i in 0..x.len() {
        let step = 1.0 / 256.0;
        let mut moved = x.to_vec();
        moved[i] = x[i] + step;
        let above = objective(&moved);
        moved[i] = x[i] - step;
        let below = objective(&moved);
        let expected = (above - below) / (2.0 * f64::from(step));
        let error = (f64::from(slope[i]) - expected).abs();
        assert!(error < 2e-3 * (1.0 + expected.abs()), "{what}[{i}]: {} instead of {expected}", slope[i]);
    }
}

#[test]
fn linear_slopes() {
    let sizes = linear::reference::Sizes { tokens: 3, input: 5, out: 4 };
    let [x, weight, a, b, dy] =
        [(15, 1), (20, 2), (10, 3), (8, 4), (12, 5)].map(|(n, seed)| random(n, seed, 1.0));
    let mask: Vec<f32> = (0..15).map(|i| if i % 3 == 0 { 0.0 } else { 1.5 }).collect();
    let lora = |a, b| Some(LoraSlices { a, b, rank: 2, scaling: 0.7, mask: &mask });
    let (dx, da, db) = linear::reference::backward(&x, &weight, lora(&a, &b), &dy, sizes);
    let f = |x: &[f32], a: &[f32], b: &[f32]| {
        linear::reference::forward(
            x,
            &weight,
            None,
            Some(LoraSlices { a, b, rank: 2, scaling: 0.7, mask: &mask }),
            sizes,
        )
    };
    agrees("dx", &x, &dy, &dx, |x| f(x, &a, &b));
    agrees("dA", &a, &dy, &da, |a| f(&x, a, &b));
    agrees("dB", &b, &dy, &db, |b| f(&x, &a, b));
}

#[test]
fn elementwise_slopes() {
    let [x, weight, dy] = [(14, 1), (7, 2), (14, 3)].map(|(n, seed)| random(n, seed, 1.0));
    for norm in check::elementwise::norms() {
        let dx = rms_norm::reference::backward(&x, &weight, norm, &dy);
        for onto in [None, Some(dy.as_slice())] {
            agrees("rms_norm", &x, &dy, &dx, |x| rms_norm::reference::forward(x, &weight, norm, onto));
        }
    }

    let up = random(14, 4, 1.0);
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Sigmoid, Activation::Clamped] {
        let (dgate, dup) = gated::reference::backward(activation, &x, &up, &dy);
        agrees("gate", &x, &dy, &dgate, |gate| gated::reference::forward(activation, gate, &up));
        agrees("up", &up, &dy, &dup, |up| gated::reference::forward(activation, &x, up));
    }

    for function in Function::ALL {
        let dx = activation::reference::backward(function, &x, &dy);
        agrees("activation", &x, &dy, &dx, |x| activation::reference::forward(function, x));
    }

    let dx = layer_norm::reference::backward(&x, &weight, 1e-5, &dy);
    for onto in [None, Some(dy.as_slice())] {
        let bias = Some(weight.as_slice());
        agrees("layer_norm", &x, &dy, &dx, |x| layer_norm::reference::forward(x, &weight, bias, 1e-5, onto));
    }

    for pairs in [Pairs::Halves, Pairs::Neighbours] {
        let sizes = rope::reference::Sizes { heads: 1, head_dim: 7, width: 3, pairs };
        let (cos, sin) = (random(12, 5, 1.0), random(12, 6, 1.0));
        let dx = rope::reference::backward(&cos, &sin, &[3, 1], &dy, sizes);
        agrees("rope", &x, &dy, &dx, |x| rope::reference::forward(x, &cos, &sin, &[3, 1], sizes));
    }
}

#[test]
fn router_slopes() {
    for router in check::mixture::ROUTERS {
        let experts = 5;
        let logits = random(15, 1, 2.0);
        let chosen = router::reference::choose(&logits, experts, None, router);
        let dweights = random(3 * router.used, 2, 1.0);
        let slopes = router::reference::backward(&logits, experts, &chosen, router, &dweights);
        agrees("logits", &logits, &dweights, &slopes, |logits| {
            router::reference::weigh(logits, experts, &chosen, router)
        });
    }
}

#[test]
fn scaled_row_slopes() {
    let [x, factors, dy] = [(12, 1), (3, 2), (12, 3)].map(|(n, seed)| random(n, seed, 1.0));
    let (dx, dfactors) = row_scale::reference::backward(&x, &factors, &dy);
    agrees("x", &x, &dy, &dx, |x| row_scale::reference::forward(x, &factors));
    agrees("factors", &factors, &dy, &dfactors, |factors| row_scale::reference::forward(&x, factors));
}

#[test]
fn attention_slopes() {
    let sizes = attention::reference::Sizes { heads: 4, kv_heads: 2, head_dim: 3 };
    let cache = DocumentOffsets::with_cache(&[0, 3, 5], &[0, 4, 6]);
    let prefix = DocumentOffsets::with_prefixes(&[0, 3, 5], &[0..0, 0..2]);
    for (documents, sliding_window, soft_cap) in [
        (cache.clone(), None, None),
        (cache.clone(), Some(2), None),
        (cache, Some(3), Some(0.9)),
        (prefix.clone(), None, None),
        (prefix, Some(2), Some(0.9)),
    ] {
        let keys = 6 * documents.keys();
        let options = AttentionOptions { documents, scaling: 0.8, sliding_window, soft_cap };
        let [q, k, v, dy] = [(60, 1), (keys, 2), (keys, 3), (60, 4)].map(|(n, seed)| random(n, seed, 1.0));
        let slopes = attention::reference::backward(&q, &k, &v, &dy, &options, sizes);
        let f = |q: &[f32], k: &[f32], v: &[f32]| attention::reference::forward(q, k, v, &options, sizes);
        agrees("dq", &q, &dy, &slopes.q, |q| f(q, &k, &v));
        agrees("dk", &k, &dy, &slopes.k, |k| f(&q, k, &v));
        agrees("dv", &v, &dy, &slopes.v, |v| f(&q, &k, v));
    }
}

#[test]
fn causal_conv_slopes() {
    let documents = DocumentOffsets::packed(&[0, 2, 2, 7]);
    let [x, weight, dy] = [(21, 1), (12, 2), (21, 3)].map(|(n, seed)| random(n, seed, 1.0));
    for silu in [false, true] {
        let conv = causal_conv::reference::Conv { weight: &weight, size: 4, silu, documents: &documents };
        let dx = causal_conv::reference::backward(&x, conv, &dy);
        agrees("dx", &x, &dy, &dx, |x| causal_conv::reference::forward(x, conv));
    }
}

#[test]
fn delta_rule_slopes() {
    use delta_rule::reference::{Rule, backward, forward};
    let documents = DocumentOffsets::packed(&[0, 1, 6]);
    let heads = DeltaHeads { keys: 1, values: 2, key_dim: 3, value_dim: 2 };
    let [mixed, decay, write, dy] =
        [(60, 1), (12, 2), (12, 3), (24, 4)].map(|(n, seed)| random(n, seed, 1.0));
    let (log_rate, bias) = ([-0.5, 0.3], [0.2, -0.4]);
    let rule = Rule {
        mixed: &mixed,
        decay: &decay,
        write: &write,
        log_rate: &log_rate,
        bias: &bias,
        heads,
        documents: &documents,
    };
    let slopes = backward(rule, &dy);
    agrees("dmixed", &mixed, &dy, &slopes.mixed, |mixed| forward(Rule { mixed, ..rule }, None).0);
    agrees("ddecay", &decay, &dy, &slopes.decay, |decay| forward(Rule { decay, ..rule }, None).0);
    agrees("dwrite", &write, &dy, &slopes.write, |write| forward(Rule { write, ..rule }, None).0);
}

#[test]
fn linear_cross_entropy_slopes() {
    let (hidden, head) = (random(12, 1, 1.0), random(28, 2, 1.0));
    let targets = [Some(3), None, Some(6)];
    let bias = random(7, 3, 1.0);
    let bounded = Logits { scale: 0.7, soft_cap: Some(0.9) };
    for (weights, logits, bias) in [
        (None, Logits::PLAIN, None),
        (Some([1.5, -0.5].as_slice()), Logits::PLAIN, None),
        (Some([1.5, -0.5].as_slice()), bounded, Some(bias.as_slice())),
    ] {
        let oracle = |hidden: &[f32], head: &[f32]| {
            let rows = Rows { head, bias, logits, targets: &targets, weights };
            linear_cross_entropy::reference::loss_and_gradients(hidden, rows, 4)
        };
        let (_, dhidden, dhead) = oracle(&hidden, &head);
        agrees("dhidden", &hidden, &[1.0], &dhidden, |hidden| vec![oracle(hidden, &head).0 as f32]);
        agrees("dhead", &head, &[1.0], &dhead, |head| vec![oracle(&hidden, head).0 as f32]);
    }
    let rows = Rows { weights: None, ..Rows::plain(&head, &targets) };
    let losses = linear_cross_entropy::reference::row_losses(&hidden, rows, 4);
    let (sum, ..) = linear_cross_entropy::reference::loss_and_gradients(&hidden, rows, 4);
    assert!((f64::from(losses[0]) + f64::from(losses[1]) - sum).abs() < 1e-6, "{losses:?} and {sum}");
}
