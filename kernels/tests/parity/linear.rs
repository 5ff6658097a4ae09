//! Linear: dense and NF4, with and without bias, adapter and dropout.

use burn::tensor::{DType, Tensor};
use tune_kernels::KernelBackend;
use tune_kernels::dropout::{Dropout, DropoutKey};
use tune_kernels::linear::reference::{self, LoraSlices, Sizes};
use tune_kernels::linear::{
    FrozenWeight, Linear, LinearBackward, Lora, LoraGradient, linear, linear_backward,
};
use tune_kernels::nf4::{self, Nf4Weight};

use crate::support::{Site, assert_close, everywhere, random, random_in, rounded, tensor, tolerance, values};

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
fn frozen<B: KernelBackend>(kind: Weight, shape: [usize; 2], dtype: DType) -> (FrozenWeight<B>, Vec<f32>) {
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

fn adapter<B: KernelBackend>(sizes: Sizes, rank: usize, probability: f32) -> Adapter {
    let key = DropoutKey { seed: 3, step: 5, micro_batch: 1, layer: 2, projection: 4 };
    let dropout = (probability > 0.0).then_some(Dropout { probability, key });
    Adapter {
        a: random(rank * sizes.input, 11, 0.3),
        b: random(sizes.out * rank, 12, 0.3),
        rank,
        mask: mask::<B>(sizes.tokens * sizes.input, sizes.input, dropout),
        dropout,
    }
}

/// The mask as the op applies it, seen through an adapter that copies its input.
fn mask<B: KernelBackend>(count: usize, input: usize, dropout: Option<Dropout>) -> Vec<f32> {
    let Some(dropout) = dropout else { return vec![1.0; count] };
    let identity: Vec<f32> =
        (0..input * input).map(|i| if i / input == i % input { 1.0 } else { 0.0 }).collect();
    let identity = tensor::<B, 2>(&identity, [input, input], DType::F32);
    let lora = Lora { a: identity.clone(), b: identity, scaling: 1.0, dropout: Some(dropout) };
    let nothing = FrozenWeight::Dense(Tensor::zeros([input, input], &Default::default()));
    let ones = Tensor::ones([count / input, input], &Default::default());
    let layer = Linear { weight: &nothing, bias: None, lora: Some(&lora) };
    values(&linear::<B>(&ones, &[layer], None).outputs[0])
}

#[test]
fn forward_and_backward_agree_with_the_oracle() {
    everywhere!(check_shapes);
}

fn check_shapes<B: KernelBackend>(site: &Site) {
    const ADAPTERS: [(usize, f32); 4] = [(0, 0.0), (1, 0.0), (8, 0.0), (5, 0.25)];
    for dtype in site.dtypes.clone() {
        if site.is_slow {
            check_some::<B>(site, dtype);
            continue;
        }
        for (tokens, input, out) in SHAPES {
            let sizes = Sizes { tokens, input, out };
            for kind in WEIGHTS {
                for (rank, probability) in ADAPTERS {
                    check::<B>(&site.name, sizes, kind, dtype, rank, probability, rank != 1);
                }
            }
        }
        // A rank beyond the narrow kernels, and a reduction of several blocks.
        let sizes = Sizes { tokens: 40, input: 1120, out: 96 };
        check::<B>(&site.name, sizes, WEIGHTS[1], dtype, 40, 0.0, true);
    }
}

/// On a GPU that the CPU imitates every kernel costs about a second of compilation, and each case here has several of
/// its own: one of each kind.
fn check_some<B: KernelBackend>(site: &Site, dtype: DType) {
    let odd = Sizes { tokens: 3, input: 77, out: 5 };
    let plain = Sizes { tokens: 5, input: 288, out: 192 };
    // From some hundred tokens on NF4 is dequantized beforehand.
    let many = Sizes { tokens: 530, input: 70, out: 40 };
    let [dense, double, single] = WEIGHTS;
    for (sizes, kind, rank, probability) in [
        (odd, dense, 0, 0.0),
        (odd, double, 5, 0.25),
        (plain, dense, 8, 0.0),
        (plain, double, 8, 0.0),
        (plain, single, 0, 0.0),
        (many, double, 1, 0.0),
    ] {
        check::<B>(&site.name, sizes, kind, dtype, rank, probability, rank != 1);
    }
}

fn check<B: KernelBackend>(
    site: &str,
    sizes: Sizes,
    kind: Weight,
    dtype: DType,
    rank: usize,
    probability: f32,
    with_bias: bool,
) {
    let what = format!("{kind:?} {dtype:?} {sizes:?} rank {rank} dropout {probability} on {site}");
    let Sizes { tokens, input, out } = sizes;
    let (weight, dense) = frozen(kind, [out, input], dtype);
    let x = random_in(tokens * input, 1, 1.0, dtype);
    let dy = random_in(tokens * out, 2, 1.0, dtype);
    let bias = random_in(out, 3, 0.5, dtype);
    let residual = random_in(tokens * out, 4, 0.5, dtype);
    let adapter = (rank > 0).then(|| adapter::<B>(sizes, rank, probability));

    let in_dtype = adapter.as_ref().map(|lora| {
        let scaled: Vec<f32> = lora.b.iter().map(|b| b * SCALING).collect();
        let unscaled = |b: &f32| b / SCALING;
        (rounded(&lora.a, dtype), rounded(&scaled, dtype).iter().map(unscaled).collect::<Vec<_>>())
    });
    let slices = adapter.as_ref().zip(in_dtype.as_ref()).map(|(lora, (a, b))| LoraSlices {
        a,
        b,
        rank: lora.rank,
        scaling: SCALING,
        mask: &lora.mask,
    });
    let mut expected = reference::forward(&x, &dense, with_bias.then_some(&bias[..]), slices, sizes);
    let (dx, da, db) = reference::backward(&x, &dense, slices, &dy, sizes);

    let x = tensor::<B, 2>(&x, [tokens, input], dtype);
    let lora = adapter.as_ref().map(|lora| Lora {
        a: tensor::<B, 2>(&lora.a, [rank, input], DType::F32),
        b: tensor::<B, 2>(&lora.b, [out, rank], DType::F32),
        scaling: SCALING,
        dropout: lora.dropout,
    });
    let bias = with_bias.then(|| tensor::<B, 1>(&bias, [out], dtype));
    let layer = Linear { weight: &weight, bias: bias.as_ref(), lora: lora.as_ref() };
    let projected = linear(&x, &[layer], None);
    let tolerance = tolerance(dtype);
    assert_eq!(projected.outputs[0].dtype(), dtype, "{what}");
    assert_close(&format!("y, {what}"), &values(&projected.outputs[0]), &expected, tolerance);

    let around = tensor::<B, 2>(&residual, [tokens, out], dtype);
    let added = linear(&x, &[layer], Some(&around));
    expected.iter_mut().zip(&residual).for_each(|(y, residual)| *y += residual);
    assert_close(&format!("y + residual, {what}"), &values(&added.outputs[0]), &expected, tolerance);

    let gradients = linear_backward(LinearBackward {
        x: Some(&x),
        layers: &[layer],
        down: projected.down.as_ref(),
        dy: &[tensor::<B, 2>(&dy, [tokens, out], dtype)],
        wants_x: true,
        sums: vec![None],
    });
    assert_close(&format!("dx, {what}"), &values(&gradients.x.expect("asked for")), &dx, tolerance);
    assert_eq!(gradients.adapters[0].is_some(), rank > 0, "{what}");
    if let Some(adapter) = &gradients.adapters[0] {
        assert_eq!((adapter.a.dtype(), adapter.b.dtype()), (DType::F32, DType::F32), "{what}");
        assert_close(&format!("dA, {what}"), &values(&adapter.a), &da, tolerance);
        assert_close(&format!("dB, {what}"), &values(&adapter.b), &db, tolerance);
    }
}

/// Several layers over one input are each layer alone; their input gradients add up, and so do the sums of adapter
/// gradients. Adapters of different ranks, and none.
#[test]
fn a_group_is_its_layers() {
    everywhere!(check_groups);
}

fn check_groups<B: KernelBackend>(site: &Site) {
    let dtypes = if site.is_slow { &site.dtypes[..1] } else { &site.dtypes[..] };
    for dtype in dtypes.iter().copied() {
        for probability in [0.0, 0.5] {
            check_group::<B>(&site.name, dtype, probability);
        }
    }
}

fn check_group<B: KernelBackend>(site: &str, dtype: DType, probability: f32) {
    let what = format!("{dtype:?} dropout {probability} on {site}");
    let (tokens, input) = (45, 96);
    let outs = [70, 33, 96];
    let ranks = [4, 0, 17];
    let x = tensor::<B, 2>(&random(tokens * input, 1, 1.0), [tokens, input], dtype);
    let weights = outs.map(|out| frozen(WEIGHTS[1], [out, input], dtype).0);
    let loras: Vec<Option<Lora<B>>> = (0..3)
        .map(|index| {
            let (rank, out) = (ranks[index], outs[index]);
            let key = DropoutKey { seed: 3, step: 5, micro_batch: 1, layer: 2, projection: index as u32 };
            (rank > 0).then(|| Lora {
                a: tensor(&random(rank * input, 20 + index as u64, 0.3), [rank, input], DType::F32),
                b: tensor(&random(out * rank, 30 + index as u64, 0.3), [out, rank], DType::F32),
                scaling: 2.0,
                dropout: Some(Dropout { probability, key }),
            })
        })
        .collect();
    let layer = |index: usize| Linear { weight: &weights[index], bias: None, lora: loras[index].as_ref() };
    let layers = [layer(0), layer(1), layer(2)];
    let dy: Vec<_> = (0..3)
        .map(|index| {
            let out = outs[index];
            tensor::<B, 2>(&random(tokens * out, 40 + index as u64, 1.0), [tokens, out], dtype)
        })
        .collect();
    let together = linear(&x, &layers, None);
    let sum = |index: usize| {
        loras[index].as_ref().map(|lora| LoraGradient { a: lora.a.clone() * 3.0, b: lora.b.clone() * 5.0 })
    };
    let request = LinearBackward {
        x: Some(&x),
        layers: &layers,
        down: together.down.as_ref(),
        dy: &dy,
        wants_x: true,
        sums: (0..3).map(sum).collect(),
    };
    let gradients = linear_backward(request);
    let mut dx = vec![0.0f32; tokens * input];
    for index in 0..3 {
        let alone = linear(&x, &[layers[index]], None);
        assert_eq!(values(&together.outputs[index]), values(&alone.outputs[0]), "{what}");
        let request = LinearBackward {
            x: Some(&x),
            layers: &layers[index..=index],
            down: alone.down.as_ref(),
            dy: &dy[index..=index],
            wants_x: true,
            sums: vec![None],
        };
        let alone = linear_backward(request);
        let slope = values(&alone.x.expect("asked for"));
        dx.iter_mut().zip(slope).for_each(|(dx, slope)| *dx += slope);
        let (found, before) = (&gradients.adapters[index], sum(index));
        assert_eq!(found.is_some(), alone.adapters[0].is_some(), "{what}");
        if let (Some(found), Some(alone), Some(before)) = (found, &alone.adapters[0], before) {
            assert_close(&what, &values(&found.a), &values(&(alone.a.clone() + before.a)), 2e-6);
            assert_close(&what, &values(&found.b), &values(&(alone.b.clone() + before.b)), 2e-6);
        }
    }
    assert_close(&what, &values(&gradients.x.expect("asked for")), &dx, tolerance(dtype));
}

/// The gradient of the input is left out where nobody asks, and adapters are still served.
#[test]
fn the_input_gradient_may_be_left_out() {
    everywhere!(check_no_input_gradient);
}

fn check_no_input_gradient<B: KernelBackend>(_: &Site) {
    let sizes = Sizes { tokens: 6, input: 20, out: 12 };
    let (weight, _) = frozen(Weight::Dense, [12, 20], DType::F32);
    let adapter = adapter::<B>(sizes, 4, 0.5);
    let x = tensor::<B, 2>(&random(120, 1, 1.0), [6, 20], DType::F32);
    let lora = Lora {
        a: tensor::<B, 2>(&adapter.a, [4, 20], DType::F32),
        b: tensor::<B, 2>(&adapter.b, [12, 4], DType::F32),
        scaling: SCALING,
        dropout: adapter.dropout,
    };
    let layer = Linear { weight: &weight, bias: None, lora: Some(&lora) };
    let down = linear(&x, &[layer], None).down;
    let run = |wants_x| {
        linear_backward(LinearBackward {
            x: Some(&x),
            layers: &[layer],
            down: down.as_ref(),
            dy: &[tensor::<B, 2>(&random(72, 2, 1.0), [6, 12], DType::F32)],
            wants_x,
            sums: vec![None],
        })
    };
    let (with, mut without) = (run(true), run(false));
    assert!(with.x.is_some() && without.x.is_none());
    let (with, without) = (with.adapters[0].clone(), without.adapters.remove(0));
    let (with, without) = (with.expect("an adapter"), without.expect("an adapter"));
    assert_eq!((values(&with.a), values(&with.b)), (values(&without.a), values(&without.b)));
}

/// A view (here a transpose) is read through its strides.
#[test]
fn operands_need_not_be_contiguous() {
    everywhere!(check_strides);
}

fn check_strides<B: KernelBackend>(_: &Site) {
    let x = random(6 * 10, 1, 1.0);
    let turned = tensor::<B, 2>(&x, [10, 6], DType::F32).transpose();
    let copied = tensor::<B, 2>(&values(&turned), [6, 10], DType::F32);
    let weight = FrozenWeight::Dense(tensor::<B, 2>(&random(40, 2, 1.0), [10, 4], DType::F32).transpose());
    let layer = Linear { weight: &weight, bias: None, lora: None };
    let run = |x| values(&linear::<B>(x, &[layer], None).outputs[0]);
    assert_eq!(run(&turned), run(&copied));
}
