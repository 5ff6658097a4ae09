//! Linear: dense and NF4, with and without bias, adapter and dropout.

use burn_tensor::DType;
use tune_kernels::check::linear::{Case, STORAGES, Storage};
use tune_kernels::dropout::{Dropout, DropoutKey};
use tune_kernels::linear::reference::Sizes;
use tune_kernels::linear::{
    FrozenWeight, Linear, LinearBackward, Lora, LoraGradient, linear, linear_backward,
};
use tune_kernels::{KernelBackend, check};

use crate::support::{
    Site, assert_close, assert_within, everywhere, random, random_in, tensor, tolerance, values,
};

/// (tokens, in, out): single rows, odd sizes, sizes beyond one tile in each direction.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 64, 64),
    (1, 50, 33),
    (3, 77, 5),
    (4, 96, 130),
    (5, 288, 192),
    (17, 130, 67),
    (64, 576, 100),
    (530, 70, 40),
    (33, 1030, 260),
    // Few rows: every number of them up to where the blocked product begins, several tasks, blocks across row ends.
    (1, 192, 700),
    (2, 1088, 131),
    (6, 320, 9),
    (7, 33, 20),
    (8, 704, 65),
];

/// The weight on the device, and in f32 as the product sees it.
fn frozen<B: KernelBackend>(
    storage: Storage,
    shape: [usize; 2],
    dtype: DType,
) -> (FrozenWeight<B>, Vec<f32>) {
    check::linear::frozen(Site::on(&B::Device::default(), dtype), storage, shape)
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
            for kind in STORAGES {
                for (rank, probability) in ADAPTERS {
                    check::<B>(&site.name, sizes, kind, dtype, rank, probability, rank != 1);
                }
            }
        }
        // A rank beyond the narrow kernels, and a reduction of several blocks.
        let sizes = Sizes { tokens: 40, input: 1120, out: 96 };
        check::<B>(&site.name, sizes, STORAGES[1], dtype, 40, 0.0, true);
    }
}

/// On a GPU that the CPU imitates every kernel costs about a second of compilation, and each case here has several of
/// its own: one of each kind.
fn check_some<B: KernelBackend>(site: &Site, dtype: DType) {
    let odd = Sizes { tokens: 3, input: 77, out: 5 };
    let plain = Sizes { tokens: 5, input: 288, out: 192 };
    // From some hundred tokens on NF4 is dequantized beforehand.
    let many = Sizes { tokens: 530, input: 70, out: 40 };
    let [dense, double, single] = STORAGES;
    for (sizes, kind, rank, probability) in [
        (odd, dense, 5, 0.0),
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
    storage: Storage,
    dtype: DType,
    rank: usize,
    probability: f32,
    with_bias: bool,
) {
    let (device, what) = (B::Device::default(), format!("{dtype:?} on {site}"));
    let case = Case { sizes, storage, rank, probability, with_bias };
    assert_within(&what, check::linear::check(Site::on::<B>(&device, dtype), case));
}

/// Skinny products beside their oracle: few tokens and many, widths that nothing divides, every rank that lanes share
/// evenly or not, and one too many for them.
#[test]
fn ranks_of_every_size_agree_with_the_oracle() {
    everywhere!(check_ranks);
}

fn check_ranks<B: KernelBackend>(site: &Site) {
    const CASES: [(usize, usize, usize, usize, f32); 9] = [
        (33, 131, 47, 33, 0.25),
        (17, 128, 96, 64, 0.0),
        (7, 130, 67, 3, 0.25),
        (1, 33, 21, 1, 0.0),
        (17, 101, 67, 4, 0.5),
        (33, 96, 130, 16, 0.25),
        (33, 257, 31, 8, 0.0),
        (33, 96, 64, 65, 0.25),
        (70, 200, 72, 48, 0.0),
    ];
    let groups: [&[_]; 3] = [
        &check::linear::GROUP,
        // More than a tile's ranks, and without dropout: the input is one part.
        &[(96, 64, 0.0), (32, 16, 0.0), (40, 0, 0.0), (32, 33, 0.0)],
        // More than are skinny together.
        &[(24, 64, 0.0), (24, 64, 0.0), (24, 64, 0.0), (24, 64, 0.0), (24, 1, 0.0)],
    ];
    let all = site.has_time_for_every_variant();
    let (cases, groups) = if all { (&CASES[..], &groups[..]) } else { (&CASES[..1], &groups[1..2]) };
    let dtypes = if all { &site.dtypes[..] } else { &site.dtypes[..1] };
    for dtype in dtypes.iter().copied() {
        let (device, what) = (B::Device::default(), format!("{dtype:?} on {}", site.name));
        for (tokens, input, out, rank, probability) in cases.iter().copied() {
            let sizes = Sizes { tokens, input, out };
            check::<B>(&site.name, sizes, Storage::Dense, dtype, rank, probability, false);
        }
        for group in groups {
            assert_within(&what, check::linear::check_group(Site::on::<B>(&device, dtype), [35, 136], group));
        }
    }
}

/// The product of last resort, which the tiled ones leave nothing to do on a device that they suit: odd sizes, several
/// tiles, every storage, both ways through a weight, an adapter carried on along the reduction.
#[cfg(any(feature = "vulkan", feature = "cuda"))]
#[test]
fn plain_products_agree_with_the_oracle() {
    everywhere!(check_plain);
}

#[cfg(any(feature = "vulkan", feature = "cuda"))]
fn check_plain<B: KernelBackend>(site: &Site) {
    if !site.is_gpu {
        return;
    }
    let sizes = [(1, 50, 33), (19, 77, 5), (37, 130, 67)];
    for dtype in site.dtypes.clone() {
        for ((tokens, input, out), kind) in sizes.into_iter().zip(STORAGES) {
            let sizes = Sizes { tokens, input, out };
            tune_kernels::gpu::with_plain_products(|| {
                check::<B>(&site.name, sizes, kind, dtype, 5, 0.0, true);
            });
        }
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
    let weights = outs.map(|out| frozen(STORAGES[1], [out, input], dtype).0);
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

/// Without `wants_x` the input's gradient is left out; adapters still get theirs.
#[test]
fn the_input_gradient_may_be_left_out() {
    everywhere!(check_no_input_gradient);
}

fn check_no_input_gradient<B: KernelBackend>(_: &Site) {
    let (weight, _) = frozen(Storage::Dense, [12, 20], DType::F32);
    let key = DropoutKey { seed: 3, step: 5, micro_batch: 1, layer: 2, projection: 4 };
    let x = tensor::<B, 2>(&random(120, 1, 1.0), [6, 20], DType::F32);
    let lora = Lora {
        a: tensor::<B, 2>(&random(4 * 20, 11, 0.3), [4, 20], DType::F32),
        b: tensor::<B, 2>(&random(12 * 4, 12, 0.3), [12, 4], DType::F32),
        scaling: 1.75,
        dropout: Some(Dropout { probability: 0.5, key }),
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

/// A few rows are computed another way than many: the same numbers, and each row as it is alone.
#[test]
fn few_rows_are_those_of_many() {
    everywhere!(check_few);
}

fn check_few<B: KernelBackend>(site: &Site) {
    // A way that the CPU has.
    if site.is_gpu {
        return;
    }
    for dtype in site.dtypes.clone() {
        for kind in STORAGES {
            let (input, out, rank) = (192, 150, 16);
            let (weight, _) = frozen(kind, [out, input], dtype);
            let lora = Lora {
                a: tensor::<B, 2>(&random(rank * input, 11, 0.3), [rank, input], DType::F32),
                b: tensor::<B, 2>(&random(out * rank, 12, 0.3), [out, rank], DType::F32),
                scaling: 1.75,
                dropout: None,
            };
            let x = random_in(20 * input, 1, 1.0, dtype);
            let layer = Linear { weight: &weight, bias: None, lora: Some(&lora) };
            let run = |x: &[f32]| {
                let x = tensor::<B, 2>(x, [x.len() / input, input], dtype);
                values(&linear::<B>(&x, &[layer], None).outputs[0])
            };
            let many = run(&x);
            let single = run(&x[..input]);
            for rows in 1..=9 {
                let what = format!("{rows} rows, {kind:?} {dtype:?} on {}", site.name);
                let few = run(&x[..rows * input]);
                assert_close(&what, &few, &many[..rows * out], tolerance(dtype));
                if rows < 9 {
                    assert_eq!(few[..out], single, "{what}");
                }
            }
        }
    }
}

/// A view (here a transpose) is read through its strides.
#[test]
fn operands_need_not_be_contiguous() {
    everywhere!(check_strides);
}

fn check_strides<B: KernelBackend>(_: &Site) {
    let x = random(6 * 10, 1, 1.0);
    let transposed = tensor::<B, 2>(&x, [10, 6], DType::F32).transpose();
    let copied = tensor::<B, 2>(&values(&transposed), [6, 10], DType::F32);
    let weight = FrozenWeight::Dense(tensor::<B, 2>(&random(40, 2, 1.0), [10, 4], DType::F32).transpose());
    let layer = Linear { weight: &weight, bias: None, lora: None };
    let run = |x| values(&linear::<B>(x, &[layer], None).outputs[0]);
    assert_eq!(run(&transposed), run(&copied));
}

/// An NF4 weight that is unpacked as it is read gives the bits of the dense matrix it stands for.
#[test]
fn an_nf4_weight_gives_the_bits_of_its_dense_matrix() {
    everywhere!(check_unpacking);
}

fn check_unpacking<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        let (packed, dense) = frozen::<B>(STORAGES[1], [48, 64], dtype);
        let dense = FrozenWeight::Dense(tensor::<B, 2>(&dense, [48, 64], dtype));
        let x = tensor::<B, 2>(&random(9 * 64, 1, 1.0), [9, 64], dtype);
        let dy = tensor::<B, 2>(&random(9 * 48, 2, 1.0), [9, 48], dtype);
        let [packed, dense] = [packed, dense].map(|weight| {
            let layer = Linear { weight: &weight, bias: None, lora: None };
            let y = values(&linear(&x, &[layer], None).outputs[0]);
            let request = LinearBackward {
                x: None,
                layers: &[layer],
                down: None,
                dy: std::slice::from_ref(&dy),
                wants_x: true,
                sums: vec![None],
            };
            (y, values(&linear_backward(request).x.expect("asked for")))
        });
        assert_eq!(packed, dense, "{dtype:?} on {}", site.name);
    }
}
