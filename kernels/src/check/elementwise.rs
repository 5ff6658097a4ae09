//! Norms, rotary embedding and activations, gated and not.

use super::measure::{Deviation, On, random, rounded, values};
use crate::KernelBackend;
use crate::activation::{self, Function, activation, activation_backward};
use crate::gated::{self, Activation, gated, gated_backward};
use crate::layer_norm::{self, layer_norm, layer_norm_backward};
use crate::rms_norm::{self, NormWeight, RmsNorm, Rounding, rms_norm, rms_norm_backward, rms_norm_onto};
use crate::rope::reference::Sizes;
use crate::rope::{self, Direction, Pairs, Positions, RotaryTable, rope};

pub(super) fn all_rms_norm<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let cases = norms().into_iter().zip([(3, 37), (7, 576), (1, 64)]);
    cases.flat_map(|(norm, (rows, width))| check_rms_norm(on, rows, width, norm)).collect()
}

/// Llama's, Gemma's, and one between them.
pub fn norms() -> [RmsNorm; 3] {
    let llama = RmsNorm::from(1e-5);
    let gemma = RmsNorm { rounding: Rounding::Last, weight: NormWeight::OnePlus, ..llama };
    [llama, gemma, RmsNorm { rounding: Rounding::Last, ..llama }]
}

pub(super) fn all_layer_norm<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let cases = [(3, 37, true), (7, 576, false), (1, 64, true)];
    cases.into_iter().flat_map(|(rows, width, biased)| check_layer_norm(on, rows, width, biased)).collect()
}

pub(super) fn all_activation<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let cases = Function::ALL.into_iter().zip([(1, 1), (3, 173), (40, 256)]);
    cases.flat_map(|(function, (rows, width))| check_activation(on, function, rows, width)).collect()
}

pub(super) fn all_rope<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let shape = |heads, head_dim, width, pairs| Sizes { heads, head_dim, width, pairs };
    let cases = [
        (1, shape(1, 2, 1, Pairs::Halves)),
        (5, shape(3, 64, 32, Pairs::Halves)),
        (9, shape(4, 24, 8, Pairs::Halves)),
        (7, shape(3, 24, 8, Pairs::Neighbours)),
    ];
    cases.into_iter().flat_map(|(tokens, sizes)| check_rope(on, tokens, sizes)).collect()
}

pub(super) fn all_silu<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    all_gated(on, Activation::Silu)
}

pub(super) fn all_gelu<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    all_gated(on, Activation::GeluTanh)
}

pub(super) fn all_sigmoid<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    all_gated(on, Activation::Sigmoid)
}

pub(super) fn all_clamped<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    all_gated(on, Activation::Clamped)
}

fn all_gated<B: KernelBackend>(on: On<'_, B>, activation: Activation) -> Vec<Deviation> {
    let cases = [(1, 1), (3, 173), (40, 256)];
    cases.into_iter().flat_map(|(rows, width)| check_gated(on, activation, rows, width)).collect()
}

/// [`rms_norm()`] and [`rms_norm_onto()`], and their backward, alone and added to a residual.
pub fn check_rms_norm<B: KernelBackend>(
    on: On<'_, B>,
    rows: usize,
    width: usize,
    norm: RmsNorm,
) -> Vec<Deviation> {
    use rms_norm::reference;
    let case = format!("[{rows}, {width}], {norm:?}");
    let x = on.random(rows * width, 1, 2.0);
    let weight = on.random(width, 2, 1.0);
    let dy = on.random(rows * width, 3, 1.0);
    let residual = on.random(rows * width, 4, 1.0);
    let forward = reference::forward(&x, &weight, norm, None);
    let onto = reference::forward(&x, &weight, norm, Some(&residual));
    let slope = reference::backward(&x, &weight, norm, &dy);
    let added: Vec<f32> = slope.iter().zip(&residual).map(|(a, b)| a + b).collect();

    let (x, weight) = (on.tensor::<2>(&x, [rows, width]), on.tensor::<1>(&weight, [width]));
    let upstream = on.tensor::<2>(&dy, [rows, width]);
    let around = on.tensor::<2>(&residual, [rows, width]);
    let y = values(&rms_norm(&x, &weight, norm));
    let sum = values(&rms_norm_onto(&x, &weight, norm, &around));
    let backward = |residual| values(&rms_norm_backward(&x, &weight, norm, upstream.clone(), residual));
    let alone = backward(None);
    let with_residual = backward(Some(&around));
    // A single column normalises to its sign: the gradient is what is left of a cancellation.
    let tolerance = if width == 1 { 1.0 } else { on.tolerance() };
    vec![
        Deviation::new("y", &case, &y, &forward, on.tolerance()),
        Deviation::new("onto + y", &case, &sum, &onto, on.tolerance()),
        Deviation::new("dx", &case, &alone, &slope, tolerance),
        Deviation::new("dx + residual", &case, &with_residual, &added, tolerance),
        // A tensor that is still held must not be written to.
        Deviation::new("dy, held", &case, &values(&upstream), &dy, 0.0),
    ]
}

/// [`rope()`] in both directions.
pub fn check_rope<B: KernelBackend>(on: On<'_, B>, tokens: usize, sizes: Sizes) -> Vec<Deviation> {
    use rope::reference;
    let Sizes { heads, head_dim, width, pairs } = sizes;
    let case = format!("[{tokens}, {heads}, {head_dim}], {width} pairs rotated, {pairs:?}");
    let positions = 40;
    let angles = random(positions * width, 4, 3.0);
    let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
    let [on_device_cos, on_device_sin] = [&cos, &sin].map(|numbers| on.single(numbers, [positions, width]));
    let table = RotaryTable { cos: on_device_cos, sin: on_device_sin, pairs };
    let position_ids: Vec<usize> = (0..tokens).map(|token| token * 7 % positions).collect();
    let on_device: Vec<u32> = position_ids.iter().map(|position| *position as u32).collect();
    let on_device = Positions::new(&on_device, on.device);
    let shape = [tokens, heads, head_dim];
    let x = on.random(tokens * heads * head_dim, 1, 1.0);
    let dy = on.random(x.len(), 2, 1.0);
    let rotate = |numbers: &[f32], direction| {
        values(&rope(on.tensor::<3>(numbers, shape), &table, &on_device, direction))
    };
    let forward = reference::forward(&x, &cos, &sin, &position_ids, sizes);
    let backward = reference::backward(&cos, &sin, &position_ids, &dy, sizes);
    vec![
        Deviation::new("y", &case, &rotate(&x, Direction::Forward), &forward, on.tolerance()),
        Deviation::new("dx", &case, &rotate(&dy, Direction::Backward), &backward, on.tolerance()),
    ]
}

/// [`gated()`] and its backward.
pub fn check_gated<B: KernelBackend>(
    on: On<'_, B>,
    activation: Activation,
    rows: usize,
    width: usize,
) -> Vec<Deviation> {
    use gated::reference;
    let case = format!("[{rows}, {width}], {activation:?}");
    // Beyond the limits of the activation that has some.
    let size = if activation == Activation::Clamped { 12.0 } else { 4.0 };
    let [gate, up, dy] = [1, 2, 3].map(|seed| on.random(rows * width, seed, size));
    let forward = reference::forward(activation, &gate, &up);
    let (dgate, dup) = reference::backward(activation, &gate, &up, &dy);
    let [gate, up, dy] = [&gate, &up, &dy].map(|numbers| on.tensor::<2>(numbers, [rows, width]));
    let y = values(&gated(activation, &gate, &up));
    let (found_gate, found_up) = gated_backward(activation, gate, up, dy);
    vec![
        Deviation::new("y", &case, &y, &forward, on.tolerance()),
        Deviation::new("dgate", &case, &values(&found_gate), &dgate, on.tolerance()),
        Deviation::new("dup", &case, &values(&found_up), &dup, on.tolerance()),
    ]
}

/// [`layer_norm()`], alone and onto a residual, and its backward, alike.
pub fn check_layer_norm<B: KernelBackend>(
    on: On<'_, B>,
    rows: usize,
    width: usize,
    biased: bool,
) -> Vec<Deviation> {
    use layer_norm::reference;
    const EPSILON: f64 = 1e-5;
    let case = format!("[{rows}, {width}], {}", if biased { "with a bias" } else { "without a bias" });
    // Off center, as hidden states are.
    let x: Vec<f32> = random(rows * width, 1, 2.0).iter().map(|x| x + 1.0).collect();
    let x = rounded(&x, on.dtype);
    let weight = on.random(width, 2, 1.0);
    let bias = on.random(width, 5, 1.0);
    let dy = on.random(rows * width, 3, 1.0);
    let residual = on.random(rows * width, 4, 1.0);
    let chosen = biased.then_some(bias.as_slice());
    let forward = reference::forward(&x, &weight, chosen, EPSILON, None);
    let onto = reference::forward(&x, &weight, chosen, EPSILON, Some(&residual));
    let slope = reference::backward(&x, &weight, EPSILON, &dy);
    let added: Vec<f32> = slope.iter().zip(&residual).map(|(a, b)| a + b).collect();

    let (x, weight) = (on.tensor::<2>(&x, [rows, width]), on.tensor::<1>(&weight, [width]));
    let bias = biased.then(|| on.tensor::<1>(&bias, [width]));
    let upstream = on.tensor::<2>(&dy, [rows, width]);
    let around = on.tensor::<2>(&residual, [rows, width]);
    let y = values(&layer_norm(&x, &weight, bias.as_ref(), EPSILON, None));
    let sum = values(&layer_norm(&x, &weight, bias.as_ref(), EPSILON, Some(&around)));
    let backward = |residual| values(&layer_norm_backward(&x, &weight, EPSILON, upstream.clone(), residual));
    let (alone, with_residual) = (backward(None), backward(Some(&around)));
    // One or two columns normalise to signs: the gradient is what is left of a cancellation.
    let tolerance = if width <= 2 { 1.0 } else { 2.0 * on.tolerance() };
    vec![
        Deviation::new("y", &case, &y, &forward, on.tolerance()),
        Deviation::new("onto + y", &case, &sum, &onto, on.tolerance()),
        Deviation::new("dx", &case, &alone, &slope, tolerance),
        Deviation::new("dx + residual", &case, &with_residual, &added, tolerance),
        // A tensor that is still held must not be written to.
        Deviation::new("dy, held", &case, &values(&upstream), &dy, 0.0),
    ]
}

/// [`activation()`] and its backward.
pub fn check_activation<B: KernelBackend>(
    on: On<'_, B>,
    function: Function,
    rows: usize,
    width: usize,
) -> Vec<Deviation> {
    use activation::reference;
    let case = format!("[{rows}, {width}], {function:?}");
    let [x, dy] = [1, 2].map(|seed| on.random(rows * width, seed, 4.0));
    let forward = reference::forward(function, &x);
    let backward = reference::backward(function, &x, &dy);
    let [x, dy] = [&x, &dy].map(|numbers| on.tensor::<2>(numbers, [rows, width]));
    let y = values(&activation(function, &x));
    let dx = values(&activation_backward(function, x, dy));
    vec![
        Deviation::new("y", &case, &y, &forward, on.tolerance()),
        Deviation::new("dx", &case, &dx, &backward, on.tolerance()),
    ]
}
