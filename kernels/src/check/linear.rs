//! Linear: dense and NF4, with and without bias, adapter and dropout.

use burn_tensor::{DType, Tensor};

use super::measure::{Deviation, On, random, rounded, values};
use crate::KernelBackend;
use crate::dropout::{Dropout, DropoutKey};
use crate::linear::reference::{self, LoraSlices, Sizes};
use crate::linear::{FrozenWeight, Linear, LinearBackward, Lora, linear, linear_backward, linear_down};
use crate::nf4::{self, Nf4Weight};

/// How a frozen weight is stored.
#[derive(Clone, Copy, Debug)]
pub enum Storage {
    /// In the compute dtype.
    Dense,
    /// In NF4.
    Nf4 {
        /// Whether scales are quantized too.
        double_quant: bool,
        /// Weights that share a scale.
        block_size: usize,
    },
}

/// Each way to store a weight.
pub const STORAGES: [Storage; 3] = [
    Storage::Dense,
    Storage::Nf4 { double_quant: true, block_size: 64 },
    Storage::Nf4 { double_quant: false, block_size: 128 },
];

/// One case: shapes, storage, and what is around the weight.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Tokens, input and output width.
    pub sizes: Sizes,
    /// How the weight is stored.
    pub storage: Storage,
    /// Rank of the adapter; 0: none.
    pub rank: usize,
    /// Of the adapter's dropout.
    pub probability: f32,
    /// Whether there is a bias.
    pub with_bias: bool,
}

const SCALING: f32 = 1.75;

pub(super) fn all<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let [dense, double, single] = STORAGES;
    let case = |(tokens, input, out), storage, rank, probability| Case {
        sizes: Sizes { tokens, input, out },
        storage,
        rank,
        probability,
        with_bias: rank != 8,
    };
    // Few: on a GPU each has kernels of its own, which take their time to compile.
    let cases = [
        case((3, 77, 5), dense, 0, 0.0),
        case((3, 77, 5), double, 5, 0.25),
        case((5, 288, 192), dense, 8, 0.0),
        case((5, 288, 192), single, 8, 0.0),
        // So many tokens that NF4 is dequantized beforehand.
        case((300, 64, 40), double, 1, 0.0),
        // Tiles divide every side but for the adapter's part.
        case((128, 128, 64), dense, 12, 0.0),
    ];
    let mut found: Vec<_> = cases.into_iter().flat_map(|case| check(on, case)).collect();
    found.extend(check_group(on, [19, 77], &GROUP));
    found
}

/// A layer of a group: its output width, its adapter's rank (0: none), and the dropout of that.
pub type Member = (usize, usize, f32);

/// Ranks that differ, none among them, and dropout of some.
pub const GROUP: [Member; 4] = [(40, 4, 0.25), (33, 0, 0.0), (24, 17, 0.0), (65, 1, 0.5)];

/// The weight on the device, and in f32 as the product sees it.
pub fn frozen<B: KernelBackend>(
    on: On<'_, B>,
    storage: Storage,
    shape: [usize; 2],
) -> (FrozenWeight<B>, Vec<f32>) {
    frozen_of(on, storage, shape, 7)
}

/// [`frozen`] of other numbers for each seed.
pub(super) fn frozen_of<B: KernelBackend>(
    on: On<'_, B>,
    storage: Storage,
    shape: [usize; 2],
    seed: u64,
) -> (FrozenWeight<B>, Vec<f32>) {
    let original = random(shape[0] * shape[1], seed, 0.2);
    match storage {
        Storage::Dense => {
            (FrozenWeight::Dense(on.tensor::<2>(&original, shape)), rounded(&original, on.dtype))
        }
        Storage::Nf4 { double_quant, block_size } => {
            let quantized = nf4::quantize(&original, shape, block_size, double_quant);
            let dense = rounded(&nf4::reference::dequantize(&quantized), on.dtype);
            (FrozenWeight::Nf4(Nf4Weight::new(quantized, on.device)), dense)
        }
    }
}

/// The mask of a dropout as the op applies it, seen through an adapter that copies its input.
fn mask<B: KernelBackend>(on: On<'_, B>, sizes: Sizes, dropout: Option<Dropout>) -> Vec<f32> {
    let Sizes { tokens, input, .. } = sizes;
    let Some(dropout) = dropout else { return vec![1.0; tokens * input] };
    let identity: Vec<f32> =
        (0..input * input).map(|i| if i / input == i % input { 1.0 } else { 0.0 }).collect();
    let identity = on.single::<2>(&identity, [input, input]);
    let lora = Lora { a: identity.clone(), b: identity, scaling: 1.0, dropout: Some(dropout) };
    let nothing = FrozenWeight::Dense(Tensor::zeros([input, input], (on.device, DType::F32)));
    let ones = Tensor::ones([tokens, input], (on.device, DType::F32));
    let layer = Linear { weight: &nothing, bias: None, lora: Some(&lora) };
    values(&linear::<B>(&ones, &[layer], None).outputs[0])
}

/// Several layers over one input, each with an adapter and a mask of its own: all their results, and the same gradients to
/// the last bit when they are computed again.
pub fn check_group<B: KernelBackend>(
    on: On<'_, B>,
    [tokens, input]: [usize; 2],
    members: &[Member],
) -> Vec<Deviation> {
    let what = format!("[{tokens}, {input}] x {members:?}");
    let deviation = |part: &'static str, found: &[f32], expected: &[f32]| {
        Deviation::new(part, &what, found, expected, on.tolerance())
    };
    let x = on.random(tokens * input, 1, 1.0);
    let x_there = on.tensor::<2>(&x, [tokens, input]);
    let (mut weights, mut loras, mut dys) = (Vec::new(), Vec::new(), Vec::new());
    let (mut outputs, mut slopes, mut dx) = (Vec::new(), Vec::new(), vec![0.0; tokens * input]);
    for ((out, rank, probability), index) in members.iter().copied().zip(0..) {
        let sizes = Sizes { tokens, input, out };
        let (weight, dense) = frozen_of(on, Storage::Dense, [out, input], 20 + u64::from(index));
        let dy = on.random(tokens * out, 40 + u64::from(index), 1.0);
        let (a, b) = (
            random(rank * input, 60 + u64::from(index), 0.3),
            random(out * rank, 80 + u64::from(index), 0.3),
        );
        let key = DropoutKey { seed: 3, step: 5, micro_batch: 1, layer: 2, projection: index };
        let dropout = (probability > 0.0).then_some(Dropout { probability, key });
        let mask = mask(on, sizes, dropout);
        let [seen_a, seen_b] = seen(on, &a, &b);
        let slices = LoraSlices { a: &seen_a, b: &seen_b, rank, scaling: SCALING, mask: &mask };
        let slices = (rank > 0).then_some(slices);
        outputs.push(reference::forward(&x, &dense, None, slices, sizes));
        let (own, da, db) = reference::backward(&x, &dense, slices, &dy, sizes);
        dx.iter_mut().zip(own).for_each(|(dx, own)| *dx += own);
        slopes.push((da, db));
        loras.push((rank > 0).then(|| lora(on, (&a, &b), [rank, input, out], dropout)));
        weights.push(weight);
        dys.push(on.tensor::<2>(&dy, [tokens, out]));
    }
    let layers = weights.iter().zip(&loras);
    let layers: Vec<_> =
        layers.map(|(weight, lora)| Linear { weight, bias: None, lora: lora.as_ref() }).collect();
    let projected = linear(&x_there, &layers, None);
    let backward = || {
        let request = LinearBackward {
            x: Some(&x_there),
            layers: &layers,
            down: projected.down.as_ref(),
            dy: &dys,
            wants_x: true,
            sums: layers.iter().map(|_| None).collect(),
        };
        let gradients = linear_backward(request);
        let adapters = gradients.adapters.iter().flatten();
        let adapters: Vec<_> = adapters.map(|slopes| [values(&slopes.a), values(&slopes.b)]).collect();
        (gradients.x.as_ref().map(values).unwrap_or_default(), adapters)
    };
    let (slope, adapters) = backward();
    let (again, adapters_again) = backward();
    let mut found =
        vec![deviation("dx", &slope, &dx), Deviation::new("dx again", &what, &again, &slope, 0.0)];
    for (output, expected) in projected.outputs.iter().zip(&outputs) {
        found.push(deviation("y", &values(output), expected));
    }
    let expected = slopes.iter().filter(|(a, _)| !a.is_empty());
    let expected: Vec<_> = expected.collect();
    let count = |count: usize| count as f32;
    found.push(deviation("adapters", &[count(adapters.len())], &[count(expected.len())]));
    for (([a, b], again), (da, db)) in adapters.iter().zip(&adapters_again).zip(expected) {
        found.extend([deviation("dA", a, da), deviation("dB", b, db)]);
        let again = [("dA again", &again[0], a), ("dB again", &again[1], b)];
        found.extend(again.map(|(part, again, once)| Deviation::new(part, &what, again, once, 0.0)));
    }
    found
}

/// A and B as the products see them, in f32: in the compute dtype, B with its scaling.
fn seen<B: KernelBackend>(on: On<'_, B>, a: &[f32], b: &[f32]) -> [Vec<f32>; 2] {
    let scaled: Vec<f32> = b.iter().map(|b| b * SCALING).collect();
    [rounded(a, on.dtype), rounded(&scaled, on.dtype).iter().map(|b| b / SCALING).collect()]
}

/// An adapter on the device.
fn lora<B: KernelBackend>(
    on: On<'_, B>,
    (a, b): (&[f32], &[f32]),
    [rank, input, out]: [usize; 3],
    dropout: Option<Dropout>,
) -> Lora<B> {
    let (a, b) = (on.single::<2>(a, [rank, input]), on.single::<2>(b, [out, rank]));
    Lora { a, b, scaling: SCALING, dropout }
}

/// [`linear`], alone and added to a residual, its backward, and [`linear_down`].
pub fn check<B: KernelBackend>(on: On<'_, B>, case: Case) -> Vec<Deviation> {
    let Case { sizes, storage, rank, probability, with_bias } = case;
    let Sizes { tokens, input, out } = sizes;
    let what = format!(
        "[{tokens}, {input}] x {out}, {storage:?}, rank {rank}, dropout {probability}, bias {with_bias}"
    );
    let (weight, dense) = frozen(on, storage, [out, input]);
    let x = on.random(tokens * input, 1, 1.0);
    let dy = on.random(tokens * out, 2, 1.0);
    let bias = on.random(out, 3, 0.5);
    let residual = on.random(tokens * out, 4, 0.5);
    let (a, b) = (random(rank * input, 11, 0.3), random(out * rank, 12, 0.3));
    let key = DropoutKey { seed: 3, step: 5, micro_batch: 1, layer: 2, projection: 4 };
    let dropout = (rank > 0 && probability > 0.0).then_some(Dropout { probability, key });
    let mask = mask(on, sizes, dropout);

    let [seen_a, seen_b] = seen(on, &a, &b);
    let slices = LoraSlices { a: &seen_a, b: &seen_b, rank, scaling: SCALING, mask: &mask };
    let slices = (rank > 0).then_some(slices);
    let forward = reference::forward(&x, &dense, with_bias.then_some(&bias[..]), slices, sizes);
    let added: Vec<f32> = forward.iter().zip(&residual).map(|(y, residual)| y + residual).collect();
    let (dx, da, db) = reference::backward(&x, &dense, slices, &dy, sizes);

    let x = on.tensor::<2>(&x, [tokens, input]);
    let lora = (rank > 0).then(|| lora(on, (&a, &b), [rank, input, out], dropout));
    let bias = with_bias.then(|| on.tensor::<1>(&bias, [out]));
    let layer = Linear { weight: &weight, bias: bias.as_ref(), lora: lora.as_ref() };
    let projected = linear(&x, &[layer], None);
    let around = on.tensor::<2>(&residual, [tokens, out]);
    let with_residual = linear(&x, &[layer], Some(&around));
    let gradients = linear_backward(LinearBackward {
        x: Some(&x),
        layers: &[layer],
        down: projected.down.as_ref(),
        dy: &[on.tensor::<2>(&dy, [tokens, out])],
        wants_x: true,
        sums: vec![None],
    });
    let deviation =
        |part, found: &[f32], expected: &[f32]| Deviation::new(part, &what, found, expected, on.tolerance());
    // What was left alone is what the forward leaves, to the last bit.
    let alone = linear_down(&x, &[layer]);
    let [t, again] = [&projected.down, &alone].map(|down| down.as_ref().map(|down| values(&down.t)));
    let slope = gradients.x.as_ref().map(values).unwrap_or_default();
    let mut found = vec![
        deviation("y", &values(&projected.outputs[0]), &forward),
        deviation("y + residual", &values(&with_residual.outputs[0]), &added),
        deviation("dx", &slope, &dx),
    ];
    if rank > 0 {
        let adapter = gradients.adapters.first().and_then(Option::as_ref);
        let [found_a, found_b] =
            adapter.map(|slopes| [values(&slopes.a), values(&slopes.b)]).unwrap_or_default();
        found.push(deviation("dA", &found_a, &da));
        found.push(deviation("dB", &found_b, &db));
        let [t, again] = [t, again].map(Option::unwrap_or_default);
        found.push(Deviation::new("t alone", &what, &again, &t, 0.0));
    }
    found
}
