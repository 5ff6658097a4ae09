//! The same bytes from one, two and three threads, and from a second run.

use burn::tensor::{DType, Tensor};
use burn_flex::Flex;
use tune_kernels::adamw::{AdamWConfig, Moments, adamw, sum_of_squares};
use tune_kernels::attention::{DocumentOffsets, attention};
use tune_kernels::dropout::{Dropout, DropoutKey};
use tune_kernels::linear::{FrozenWeight, Lora, linear};
use tune_kernels::linear_cross_entropy::linear_cross_entropy;
use tune_kernels::nf4::{self, Nf4Weight};
use tune_kernels::rms_norm::rms_norm;
use tune_kernels::rope::{RotaryTable, rope};
use tune_kernels::seed::backward_with;
use tune_kernels::swiglu::swiglu;

use crate::support::{A, DTYPES, gradient, ids, random, tensor, values};

const TOKENS: usize = 300;
const WIDTH: usize = 192;
const HEADS: usize = 6;

/// One pass through every op, forward and backward, with everything it computed; large enough that each op forks.
fn all_ops(dtype: DType) -> Vec<Vec<f32>> {
    let packed = |out: usize, input: usize, seed: u64| {
        let quantized = nf4::quantize(&random(out * input, seed, 0.1), [out, input], 64, true);
        FrozenWeight::Nf4(Nf4Weight::<Flex>::new(quantized, &Default::default()))
    };
    let leaf = |shape: [usize; 2], seed: u64, dtype: DType| {
        tensor::<A, 2>(&random(shape[0] * shape[1], seed, 0.5), shape, dtype).require_grad()
    };
    let key = DropoutKey { seed: 1, step: 1, micro_batch: 0, layer: 0, projection: 0 };
    let lora = Lora {
        a: leaf([16, WIDTH], 1, DType::F32),
        b: leaf([WIDTH, 16], 2, DType::F32),
        scaling: 2.0,
        dropout: Some(Dropout { probability: 0.1, key }),
    };
    let x = leaf([TOKENS, WIDTH], 3, dtype);
    let weight = tensor::<Flex, 1>(&random(WIDTH, 4, 1.0), [WIDTH], dtype);
    let normed = rms_norm(x.clone(), &weight, 1e-6);
    let q = linear(normed.clone(), &packed(WIDTH, WIDTH, 5), None, Some(&lora));
    let k = linear(normed.clone(), &packed(WIDTH / 2, WIDTH, 6), None, None);
    let v = linear(normed, &packed(WIDTH / 2, WIDTH, 7), None, None);
    let head_dim = WIDTH / HEADS;
    let angles =
        tensor::<Flex, 2>(&random(TOKENS * head_dim / 2, 8, 3.0), [TOKENS, head_dim / 2], DType::F32);
    let table = RotaryTable { cos: angles.clone().cos(), sin: angles.sin() };
    let positions = ids(&(0..TOKENS as i32).collect::<Vec<_>>());
    let q = rope(q.reshape([TOKENS, HEADS, head_dim]), &table, &positions);
    let k = rope(k.reshape([TOKENS, HEADS / 2, head_dim]), &table, &positions);
    let v = v.reshape([TOKENS, HEADS / 2, head_dim]);
    let y = attention(q, k, v, &DocumentOffsets::packed(&[0, 90, TOKENS as u32]), 0.2, None);
    let y: Tensor<A, 2> = y.reshape([TOKENS, WIDTH]);
    let gate = linear(y.clone(), &packed(400, WIDTH, 9), None, None);
    let up = linear(y, &packed(400, WIDTH, 10), None, None);
    let y = linear(swiglu(gate, up), &packed(WIDTH, 400, 11), None, None);
    let targets = ids(&(0..TOKENS as i32).collect::<Vec<_>>());
    let loss = linear_cross_entropy(y.clone(), &packed(777, WIDTH, 12), &targets);
    let gradients = backward_with(loss.clone(), Tensor::ones([1], &Default::default()));
    let [da, db] = [&lora.a, &lora.b].map(|leaf| leaf.grad(&gradients).expect("tracked"));
    let parameter = lora.a.clone().inner();
    let moments = Moments::zeros_like(&parameter);
    let squares = sum_of_squares(&da) + sum_of_squares(&db);
    let (parameter, _) = adamw(parameter, da.clone(), moments, &AdamWConfig::default(), 1e-3, 1);
    let bits = squares.to_bits();
    let halves = vec![f32::from_bits(bits as u32), f32::from_bits((bits >> 32) as u32)];
    vec![
        values(&y),
        values(&loss),
        gradient(&x, &gradients),
        values(&da),
        values(&db),
        halves,
        values(&parameter),
    ]
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    for dtype in DTYPES {
        let run = |threads: usize| -> Vec<Vec<u32>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            let results = pool.install(|| all_ops(dtype));
            results.into_iter().map(|part| part.into_iter().map(f32::to_bits).collect()).collect()
        };
        let one = run(1);
        assert!(one.iter().flatten().any(|bits| *bits != 0));
        for threads in [1, 2, 3] {
            assert!(run(threads) == one, "{dtype:?}: {threads} threads");
        }
    }
}
