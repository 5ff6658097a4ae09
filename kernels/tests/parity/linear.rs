//! Linear: dense and NF4, with and without bias, adapter and dropout.

use burn::tensor::{DType, Tensor};
use burn_flex::Flex;
use tune_kernels::dropout::{Dropout, DropoutKey};
use tune_kernels::linear::reference::{self, LoraSlices, Sizes};
use tune_kernels::linear::{FrozenWeight, Lora, linear};
use tune_kernels::nf4::{self, Nf4Weight};
use tune_kernels::seed::backward_with;

use crate::support::{
    A, DTYPES, assert_close, gradient, random, random_in, rounded, tensor, tolerance, values,
};

/// (tokens, in, out): single rows, odd sizes, sizes beyond one tile in each direction.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 64, 64),
    (1, 50, 33),
    (3, 77, 5),
    (4, 96, 130),
    (5, 288, 192),
    (17, 130, 67),
    (64, 576, 100),
    (530, 70, 40),
    (33, 1030, 260),
];

#[derive(Clone, Copy, Debug)]
enum Weight {
    Dense,
    Nf4 { double_quant: bool, block_size: usize },
}

const WEIGHTS: [Weight; 3] = [
    Weight::Dense,
    Weight::Nf4 { double_quant: true, block_size: 64 },
    Weight::Nf4 { double_quant: false, block_size: 128 },
];

/// The weight on the device, and in f32 as the product sees it.
fn frozen(kind: Weight, shape: [usize; 2], dtype: DType) -> (FrozenWeight<Flex>, Vec<f32>) {
    let original = random(shape[0] * shape[1], 7, 0.2);
    match kind {
        Weight::Dense => (FrozenWeight::Dense(tensor(&original, shape, dtype)), rounded(&original, dtype)),
        Weight::Nf4 { double_quant, block_size } => {
            let quantized = nf4::quantize(&original, shape, block_size, double_quant);
            let dense = rounded(&nf4::reference::dequantize(&quantized), dtype);
            (FrozenWeight::Nf4(Nf4Weight::new(quantized, &Default::default())), dense)
        }
    }
}

struct Adapter {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    mask: Vec<f32>,
    dropout: Option<Dropout>,
}

const SCALING: f32 = 1.75;

fn adapter(sizes: Sizes, rank: usize, probability: f32) -> Adapter {
    let key = DropoutKey { seed: 3, step: 5, micro_batch: 1, layer: 2, projection: 4 };
    let dropout = (probability > 0.0).then_some(Dropout { probability, key });
    Adapter {
        a: random(rank * sizes.input, 11, 0.3),
        b: random(sizes.out * rank, 12, 0.3),
        rank,
        mask: mask(sizes.tokens * sizes.input, sizes.input, dropout),
        dropout,
    }
}

/// The mask as the op applies it, seen through an adapter that copies its input.
fn mask(count: usize, input: usize, dropout: Option<Dropout>) -> Vec<f32> {
    let Some(dropout) = dropout else { return vec![1.0; count] };
    let identity: Vec<f32> =
        (0..input * input).map(|i| if i / input == i % input { 1.0 } else { 0.0 }).collect();
    let identity = tensor::<Flex, 2>(&identity, [input, input], DType::F32);
    let lora = Lora { a: identity.clone(), b: identity, scaling: 1.0, dropout: Some(dropout) };
    let nothing = FrozenWeight::Dense(Tensor::zeros([input, input], &Default::default()));
    let ones = Tensor::ones([count / input, input], &Default::default());
    values(&linear::<Flex>(ones, &nothing, None, Some(&lora)))
}

#[test]
fn forward_and_backward_agree_with_the_oracle() {
    for dtype in DTYPES {
        for (tokens, input, out) in SHAPES {
            let sizes = Sizes { tokens, input, out };
            for kind in WEIGHTS {
                for (rank, probability) in [(0, 0.0), (1, 0.0), (8, 0.0), (5, 0.25)] {
                    check(sizes, kind, dtype, rank, probability, rank != 1);
                }
            }
        }
    }
}

fn check(sizes: Sizes, kind: Weight, dtype: DType, rank: usize, probability: f32, with_bias: bool) {
    let what = format!("{kind:?} {dtype:?} {sizes:?} rank {rank} dropout {probability}");
    let Sizes { tokens, input, out } = sizes;
    let (weight, dense) = frozen(kind, [out, input], dtype);
    let x = random_in(tokens * input, 1, 1.0, dtype);
    let dy = random_in(tokens * out, 2, 1.0, dtype);
    let bias = random_in(out, 3, 0.5, dtype);
    let adapter = (rank > 0).then(|| adapter(sizes, rank, probability));

    let in_dtype = adapter.as_ref().map(|lora| (rounded(&lora.a, dtype), rounded(&lora.b, dtype)));
    let slices = adapter.as_ref().zip(in_dtype.as_ref()).map(|(lora, (a, b))| LoraSlices {
        a,
        b,
        rank: lora.rank,
        scaling: SCALING,
        mask: &lora.mask,
    });
    let expected = reference::forward(&x, &dense, with_bias.then_some(&bias[..]), slices, sizes);
    let (dx, da, db) = reference::backward(&x, &dense, slices, &dy, sizes);

    let x_leaf = tensor::<A, 2>(&x, [tokens, input], dtype).require_grad();
    let lora = adapter.as_ref().map(|lora| Lora {
        a: tensor::<A, 2>(&lora.a, [rank, input], DType::F32).require_grad(),
        b: tensor::<A, 2>(&lora.b, [out, rank], DType::F32).require_grad(),
        scaling: SCALING,
        dropout: lora.dropout,
    });
    let bias = with_bias.then(|| tensor::<Flex, 1>(&bias, [out], dtype));
    let y = linear(x_leaf.clone(), &weight, bias.as_ref(), lora.as_ref());
    assert_eq!(y.dtype(), dtype, "{what}");
    let tolerance = tolerance(dtype);
    assert_close(&format!("y, {what}"), &values(&y), &expected, tolerance);

    let gradients = backward_with(y, tensor::<Flex, 2>(&dy, [tokens, out], dtype));
    assert_close(&format!("dx, {what}"), &gradient(&x_leaf, &gradients), &dx, tolerance);
    if let Some(lora) = lora {
        assert_eq!(lora.a.grad(&gradients).expect("tracked").dtype(), DType::F32, "{what}");
        assert_close(&format!("dA, {what}"), &gradient(&lora.a, &gradients), &da, tolerance);
        assert_close(&format!("dB, {what}"), &gradient(&lora.b, &gradients), &db, tolerance);
    }
}

/// Each of x, A and B may be frozen for itself; the others' gradients stay the same.
#[test]
fn every_choice_of_tracked_parents_works() {
    let sizes = Sizes { tokens: 6, input: 20, out: 12 };
    let (weight, _) = frozen(Weight::Dense, [12, 20], DType::F32);
    let adapter = adapter(sizes, 4, 0.5);
    let run = |tracked: [bool; 3]| {
        let leaf = |values: &[f32], shape: [usize; 2], tracked: bool| {
            let tensor = tensor::<A, 2>(values, shape, DType::F32);
            if tracked { tensor.require_grad() } else { tensor }
        };
        let x = leaf(&random(120, 1, 1.0), [6, 20], tracked[0]);
        let lora = Lora {
            a: leaf(&adapter.a, [4, 20], tracked[1]),
            b: leaf(&adapter.b, [12, 4], tracked[2]),
            scaling: SCALING,
            dropout: adapter.dropout,
        };
        let y = linear(x.clone(), &weight, None, Some(&lora));
        let gradients = backward_with(y, tensor::<Flex, 2>(&random(72, 2, 1.0), [6, 12], DType::F32));
        [x, lora.a, lora.b].map(|leaf| leaf.grad(&gradients).map(|gradient| values(&gradient)))
    };
    let all = run([true; 3]);
    for bits in 0..8 {
        let tracked = [0, 1, 2].map(|i| bits >> i & 1 == 1);
        for ((found, expected), tracked) in run(tracked).iter().zip(&all).zip(tracked) {
            assert_eq!(found.as_ref(), tracked.then_some(expected).and_then(Option::as_ref), "{bits:03b}");
        }
    }
}

#[test]
fn without_autodiff_the_result_is_the_same() {
    let (weight, _) = frozen(WEIGHTS[1], [40, 64], DType::BF16);
    let x = random(7 * 64, 1, 1.0);
    let plain = linear::<Flex>(tensor(&x, [7, 64], DType::BF16), &weight, None, None);
    let tracked = linear::<A>(tensor(&x, [7, 64], DType::BF16).require_grad(), &weight, None, None);
    assert_eq!(values(&plain), values(&tracked));
}

/// A view (here a transpose) is read through its strides.
#[test]
fn operands_need_not_be_contiguous() {
    let x = random(6 * 10, 1, 1.0);
    let turned = tensor::<Flex, 2>(&x, [10, 6], DType::F32).transpose();
    let copied = tensor::<Flex, 2>(&values(&turned), [6, 10], DType::F32);
    let weight = FrozenWeight::Dense(tensor::<Flex, 2>(&random(40, 2, 1.0), [10, 4], DType::F32).transpose());
    let found = linear::<Flex>(turned, &weight, None, None);
    assert_eq!(values(&found), values(&linear::<Flex>(copied, &weight, None, None)));
}
