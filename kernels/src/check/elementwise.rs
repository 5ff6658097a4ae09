//! RMSNorm, rotary embedding and SwiGLU.

use super::measure::{Deviation, On, random, values};
use crate::KernelBackend;
use crate::rms_norm::{self, rms_norm, rms_norm_backward};
use crate::rope::reference::Sizes;
use crate::rope::{self, Direction, Positions, RotaryTable, rope};
use crate::swiglu::{self, swiglu, swiglu_backward};

const EPSILON: f64 = 1e-5;

pub(super) fn all_rms_norm<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    [(1, 64), (3, 37), (7, 576)]
        .into_iter()
        .flat_map(|(rows, width)| check_rms_norm(on, rows, width))
        .collect()
}

pub(super) fn all_rope<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let shape = |heads, head_dim, width| Sizes { heads, head_dim, width };
    let cases = [(1, shape(1, 2, 1)), (5, shape(3, 64, 32)), (9, shape(4, 24, 8))];
    cases.into_iter().flat_map(|(tokens, sizes)| check_rope(on, tokens, sizes)).collect()
}

pub(super) fn all_swiglu<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    [(1, 1), (3, 173), (40, 256)]
        .into_iter()
        .flat_map(|(rows, width)| check_swiglu(on, rows, width))
        .collect()
}

/// [`rms_norm()`] and its backward, alone and added to a residual.
pub fn check_rms_norm<B: KernelBackend>(on: On<'_, B>, rows: usize, width: usize) -> Vec<Deviation> {
    use rms_norm::reference;
    let case = format!("[{rows}, {width}]");
    let x = on.random(rows * width, 1, 2.0);
    let weight = on.random(width, 2, 1.0);
    let dy = on.random(rows * width, 3, 1.0);
    let residual = on.random(rows * width, 4, 1.0);
    let forward = reference::forward(&x, &weight, EPSILON);
    let slope = reference::backward(&x, &weight, EPSILON, &dy);
    let added: Vec<f32> = slope.iter().zip(&residual).map(|(a, b)| a + b).collect();

    let (x, weight) = (on.tensor::<2>(&x, [rows, width]), on.tensor::<1>(&weight, [width]));
    let upstream = on.tensor::<2>(&dy, [rows, width]);
    let y = values(&rms_norm(&x, &weight, EPSILON));
    let backward = |residual| values(&rms_norm_backward(&x, &weight, EPSILON, upstream.clone(), residual));
    let alone = backward(None);
    let around = on.tensor::<2>(&residual, [rows, width]);
    let with_residual = backward(Some(&around));
    // A single column normalises to its sign: the gradient is what is left of a cancellation.
    let tolerance = if width == 1 { 1.0 } else { on.tolerance() };
    vec![
        Deviation::new("y", &case, &y, &forward, on.tolerance()),
        Deviation::new("dx", &case, &alone, &slope, tolerance),
        Deviation::new("dx + residual", &case, &with_residual, &added, tolerance),
        // A tensor that is still held must not be written to.
        Deviation::new("dy, held", &case, &values(&upstream), &dy, 0.0),
    ]
}

/// [`rope()`] in both directions.
pub fn check_rope<B: KernelBackend>(on: On<'_, B>, tokens: usize, sizes: Sizes) -> Vec<Deviation> {
    use rope::reference;
    let Sizes { heads, head_dim, width } = sizes;
    let case = format!("[{tokens}, {heads}, {head_dim}], {width} pairs rotated");
    let positions = 40;
    let angles = random(positions * width, 4, 3.0);
    let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
    let table =
        RotaryTable { cos: on.single(&cos, [positions, width]), sin: on.single(&sin, [positions, width]) };
    let position_ids: Vec<usize> = (0..tokens).map(|token| token * 7 % positions).collect();
    let on_device: Vec<u32> = position_ids.iter().map(|position| *position as u32).collect();
    let on_device = Positions::new(&on_device, on.device);
    let shape = [tokens, heads, head_dim];
    let x = on.random(tokens * heads * head_dim, 1, 1.0);
    let dy = on.random(x.len(), 2, 1.0);
    let turn = |numbers: &[f32], direction| {
        values(&rope(on.tensor::<3>(numbers, shape), &table, &on_device, direction))
    };
    let forward = reference::forward(&x, &cos, &sin, &position_ids, sizes);
    let backward = reference::backward(&cos, &sin, &position_ids, &dy, sizes);
    vec![
        Deviation::new("y", &case, &turn(&x, Direction::Forward), &forward, on.tolerance()),
        Deviation::new("dx", &case, &turn(&dy, Direction::Backward), &backward, on.tolerance()),
    ]
}

/// [`swiglu()`] and its backward.
pub fn check_swiglu<B: KernelBackend>(on: On<'_, B>, rows: usize, width: usize) -> Vec<Deviation> {
    use swiglu::reference;
    let case = format!("[{rows}, {width}]");
    let [gate, up, dy] = [1, 2, 3].map(|seed| on.random(rows * width, seed, 4.0));
    let forward = reference::forward(&gate, &up);
    let (dgate, dup) = reference::backward(&gate, &up, &dy);
    let [gate, up, dy] = [&gate, &up, &dy].map(|numbers| on.tensor::<2>(numbers, [rows, width]));
    let y = values(&swiglu(&gate, &up));
    let (found_gate, found_up) = swiglu_backward(gate, up, dy);
    vec![
        Deviation::new("y", &case, &y, &forward, on.tolerance()),
        Deviation::new("dgate", &case, &values(&found_gate), &dgate, on.tolerance()),
        Deviation::new("dup", &case, &values(&found_up), &dup, on.tolerance()),
    ]
}
