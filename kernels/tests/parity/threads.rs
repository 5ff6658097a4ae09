//! The same bytes from one, two and three threads, and from a second run.

use burn_flex::Flex;
use burn_tensor::{DType, Tensor};
use tune_kernels::adamw::{AdamWConfig, Guard, Moments, Update, adamw, norm};
use tune_kernels::attention::{
    AttentionBackward, AttentionOptions, DocumentOffsets, attention, attention_backward,
};
use tune_kernels::causal_conv::{CausalConv, causal_conv, causal_conv_backward};
use tune_kernels::delta_rule::{DeltaHeads, DeltaRule, delta_rule, delta_rule_backward};
use tune_kernels::dropout::{Dropout, DropoutKey};
use tune_kernels::gated::{Activation, gated, gated_backward};
use tune_kernels::linear::{FrozenWeight, Linear, LinearBackward, Lora, linear, linear_backward};
use tune_kernels::linear_cross_entropy::linear_cross_entropy;
use tune_kernels::nf4::{self, Nf4Weight};
use tune_kernels::rms_norm::{rms_norm, rms_norm_backward};
use tune_kernels::rope::{Direction, Pairs, Positions, RotaryTable, rope};

use crate::support::{random, tensor, values};

const TOKENS: usize = 300;
const WIDTH: usize = 192;
const HEADS: usize = 6;

/// One pass through every op, forward and backward, with everything it computed; large enough that each op forks.
fn all_ops(dtype: DType) -> Vec<Vec<f32>> {
    let packed = |out: usize, input: usize, seed: u64| {
        let quantized = nf4::quantize(&random(out * input, seed, 0.1), [out, input], 64, true);
        FrozenWeight::Nf4(Nf4Weight::<Flex>::new(quantized, &Default::default()))
    };
    let matrix = |shape: [usize; 2], seed: u64, dtype: DType| {
        tensor::<Flex, 2>(&random(shape[0] * shape[1], seed, 0.5), shape, dtype)
    };
    let key = DropoutKey { seed: 1, step: 1, micro_batch: 0, layer: 0, projection: 0 };
    let lora = Lora {
        a: matrix([16, WIDTH], 1, DType::F32),
        b: matrix([WIDTH, 16], 2, DType::F32),
        scaling: 2.0,
        dropout: Some(Dropout { probability: 0.1, key }),
    };
    let x = matrix([TOKENS, WIDTH], 3, dtype);
    let weight = tensor::<Flex, 1>(&random(WIDTH, 4, 1.0), [WIDTH], dtype);
    let normed = rms_norm(&x, &weight, 1e-6);
    let weights = [packed(WIDTH, WIDTH, 5), packed(WIDTH / 2, WIDTH, 6), packed(WIDTH / 2, WIDTH, 7)];
    let layer = |index: usize, lora| Linear { weight: &weights[index], bias: None, lora };
    let layers = [layer(0, Some(&lora)), layer(1, None), layer(2, None)];
    let projected = linear(&normed, &layers, None);
    let head_dim = WIDTH / HEADS;
    let angles = matrix([TOKENS, head_dim / 2], 8, DType::F32);
    let table = RotaryTable { cos: angles.clone().cos(), sin: angles.sin(), pairs: Pairs::Halves };
    let positions = Positions::new(&(0..TOKENS as u32).collect::<Vec<_>>(), &Default::default());
    let heads =
        |index: usize, heads: usize| projected.outputs[index].clone().reshape([TOKENS, heads, head_dim]);
    let q = rope(heads(0, HEADS), &table, &positions, Direction::Forward);
    let k = rope(heads(1, HEADS / 2), &table, &positions, Direction::Forward);
    let v = heads(2, HEADS / 2);
    let documents = DocumentOffsets::packed(&[0, 90, TOKENS as u32]);
    let options = AttentionOptions { documents, scaling: 0.2, sliding_window: None, soft_cap: None };
    let (output, log_sum_exp) = attention(&q, &k, &v, &options);
    let y: Tensor<Flex, 2> = output.clone().reshape([TOKENS, WIDTH]);
    let feed = [packed(400, WIDTH, 9), packed(400, WIDTH, 10), packed(WIDTH, 400, 11)];
    let plain = |index: usize| Linear { weight: &feed[index], bias: None, lora: None };
    let inner = linear(&y, &[plain(0), plain(1)], None).outputs;
    let y = linear(&gated(Activation::Silu, &inner[0], &inner[1]), &[plain(2)], Some(&y)).outputs.remove(0);
    let targets: Vec<_> = (0..TOKENS as i32).collect();
    let found = linear_cross_entropy(&y, &packed(777, WIDTH, 12), &targets, true);
    let gradient = found.gradient.expect("asked for");
    let (dgate, dup) =
        gated_backward(Activation::GeluTanh, inner[0].clone(), inner[1].clone(), inner[0].clone());
    let request = LinearBackward {
        x: None,
        layers: &[plain(0), plain(1)],
        down: None,
        dy: &[dgate, dup],
        wants_x: true,
        sums: vec![None, None],
    };
    let dy = linear_backward(request).x.expect("asked for").reshape([TOKENS, HEADS, head_dim]);
    let request = AttentionBackward {
        q: &q,
        k: &k,
        v: &v,
        output: &output,
        log_sum_exp: &log_sum_exp,
        options: &options,
        dy: &dy,
    };
    let slopes = attention_backward(request);
    let slopes = slopes.map(|slope| {
        let width = slope.dims()[1] * head_dim;
        rope(slope, &table, &positions, Direction::Backward).reshape([TOKENS, width])
    });
    let request = LinearBackward {
        x: Some(&normed),
        layers: &layers,
        down: projected.down.as_ref(),
        dy: &slopes,
        wants_x: true,
        sums: vec![None, None, None],
    };
    let mut gradients = linear_backward(request);
    let adapter = gradients.adapters.remove(0).expect("an adapter");
    let dx = rms_norm_backward(&x, &weight, 1e-6, gradients.x.expect("asked for"), Some(&gradient));
    let norm = norm(&[&adapter.a, &adapter.b], &Default::default());
    let update = |parameter: &Tensor<Flex, 2>, gradient: &Tensor<Flex, 2>| {
        let moments = Moments::zeros_like(parameter);
        Update { parameter: parameter.clone(), gradient: Some(gradient.clone()), moments }
    };
    let updates = vec![update(&lora.a, &adapter.a), update(&lora.b, &adapter.b)];
    let updated = adamw(updates, &Guard::open(0.5, &Default::default()), &AdamWConfig::default(), 1e-3, 1);
    vec![
        values(&y),
        values(&found.loss),
        values(&dx),
        values(&adapter.a),
        values(&adapter.b),
        values(&norm),
        values(&updated[0].0),
        values(&updated[1].0),
    ]
}

/// Convolution and recurrence, forward and backward, over several documents.
fn recurrent(dtype: DType) -> Vec<Vec<f32>> {
    let documents = DocumentOffsets::packed(&[0, 90, 91, TOKENS as u32]);
    let heads = DeltaHeads { keys: 3, values: 6, key_dim: 32, value_dim: 32 };
    let width: usize = heads.widths().iter().sum();
    let matrix = |width: usize, seed: u64| {
        tensor::<Flex, 2>(&random(TOKENS * width, seed, 1.0), [TOKENS, width], dtype)
    };
    let weight = tensor::<Flex, 2>(&random(4 * width, 1, 0.5), [width, 4], dtype);
    let conv = CausalConv { weight: &weight, silu: true, documents: &documents };
    let x = matrix(width, 2);
    let (mixed, decay, write) = (causal_conv(&x, conv), matrix(6, 3), matrix(6, 4));
    let [log_rate, bias] = [5, 6].map(|seed| tensor::<Flex, 1>(&random(6, seed, 1.0), [6], DType::F32));
    let rule = DeltaRule {
        mixed: &mixed,
        decay: &decay,
        write: &write,
        log_rate: &log_rate,
        bias: &bias,
        heads,
        documents: &documents,
    };
    let y = delta_rule(rule);
    let slopes = delta_rule_backward(rule, &y);
    let dx = causal_conv_backward(&x, conv, &slopes.mixed);
    [y, dx, slopes.decay, slopes.write].iter().map(values).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let run = |threads: usize| -> Vec<Vec<u32>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            let mut results = pool.install(|| all_ops(dtype));
            results.extend(pool.install(|| recurrent(dtype)));
            results.into_iter().map(|part| part.into_iter().map(f32::to_bits).collect()).collect()
        };
        let one = run(1);
        assert!(one.iter().flatten().any(|bits| *bits != 0));
        for threads in [1, 2, 3, 7] {
            assert!(run(threads) == one, "{dtype:?}: {threads} threads");
        }
    }
}

/// Decoding: a few rows against large weights, and a query against many keys, each large enough to fork.
fn decoding(dtype: DType) -> Vec<Vec<f32>> {
    let (width, out, rank) = (1024, 1500, 16);
    let quantized = nf4::quantize(&random(out * width, 1, 0.1), [out, width], 64, true);
    let packed = FrozenWeight::Nf4(Nf4Weight::<Flex>::new(quantized, &Default::default()));
    let dense = FrozenWeight::Dense(tensor::<Flex, 2>(&random(out * width, 2, 0.1), [out, width], dtype));
    let lora = Lora {
        a: tensor(&random(rank * width, 3, 0.5), [rank, width], DType::F32),
        b: tensor(&random(out * rank, 4, 0.5), [out, rank], DType::F32),
        scaling: 2.0,
        dropout: None,
    };
    let layers = [
        Linear { weight: &packed, bias: None, lora: Some(&lora) },
        Linear { weight: &dense, bias: None, lora: None },
    ];
    let mut results = Vec::new();
    for rows in [1, 3] {
        let x = tensor::<Flex, 2>(&random(rows * width, 5, 1.0), [rows, width], dtype);
        results.extend(linear(&x, &layers, None).outputs.iter().map(values));
    }
    let (keys, heads, head_dim) = (6000, 4, 64);
    let q = tensor::<Flex, 3>(&random(heads * head_dim, 6, 1.0), [1, heads, head_dim], dtype);
    let k = tensor::<Flex, 3>(&random(keys * 2 * head_dim, 7, 1.0), [keys, 2, head_dim], dtype);
    let documents = DocumentOffsets::with_cache(&[0, 1], &[0, keys as u32]);
    let options = AttentionOptions { documents, scaling: 0.2, sliding_window: None, soft_cap: None };
    results.push(values(&attention(&q, &k, &k, &options).0));
    results
}

#[test]
fn decoding_is_the_same_on_any_number_of_threads() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let run = |threads: usize| -> Vec<Vec<u32>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            let results = pool.install(|| decoding(dtype));
            results.into_iter().map(|part| part.into_iter().map(f32::to_bits).collect()).collect()
        };
        let one = run(1);
        assert!(one.iter().all(|part| part.iter().any(|bits| *bits != 0)));
        for threads in [2, 3, 7] {
            assert!(run(threads) == one, "{dtype:?}: {threads} threads");
        }
    }
}
