//! RMSNorm, rotary embedding and SwiGLU.

use tune_kernels::KernelBackend;
use tune_kernels::rms_norm::{rms_norm, rms_norm_backward};
use tune_kernels::rope::{Direction, RotaryTable, rope};
use tune_kernels::swiglu::{swiglu, swiglu_backward};

use crate::support::{Site, assert_close, everywhere, ids, random, random_in, tensor, tolerance, values};

#[test]
fn rms_norm_agrees_with_the_oracle() {
    everywhere!(check_rms_norm);
}

fn check_rms_norm<B: KernelBackend>(site: &Site) {
    use tune_kernels::rms_norm::reference;
    for dtype in site.dtypes.clone() {
        for (rows, width) in [(1, 1), (1, 64), (3, 37), (7, 576), (300, 96), (130, 1000)] {
            let what = format!("rms_norm on {} {dtype:?} [{rows}, {width}]", site.name);
            let x = random_in(rows * width, 1, 2.0, dtype);
            let weight = random_in(width, 2, 1.0, dtype);
            let dy = random_in(rows * width, 3, 1.0, dtype);
            let on_device = tensor::<B, 2>(&x, [rows, width], dtype);
            let device_weight = tensor::<B, 1>(&weight, [width], dtype);
            let y = rms_norm(&on_device, &device_weight, 1e-5);
            assert_eq!(y.dtype(), dtype);
            assert_close(&what, &values(&y), &reference::forward(&x, &weight, 1e-5), tolerance(dtype));
            let upstream = tensor::<B, 2>(&dy, [rows, width], dtype);
            let backward =
                |residual| rms_norm_backward(&on_device, &device_weight, 1e-5, upstream.clone(), residual);
            let expected = reference::backward(&x, &weight, 1e-5, &dy);
            // A single column normalises to its sign: the gradient is what is left of a cancellation.
            let tolerance = if width == 1 { 1.0 } else { tolerance(dtype) };
            assert_close(&format!("d {what}"), &values(&backward(None)), &expected, tolerance);
            let residual = random_in(rows * width, 4, 1.0, dtype);
            let expected: Vec<f32> = expected.iter().zip(&residual).map(|(a, b)| a + b).collect();
            let residual = tensor::<B, 2>(&residual, [rows, width], dtype);
            let found = values(&backward(Some(&residual)));
            assert_close(&format!("d {what} with a residual"), &found, &expected, tolerance);
            assert_eq!(values(&upstream), dy, "{what}: a tensor that is still held was changed");
        }
    }
}

#[test]
fn rope_agrees_with_the_oracle() {
    everywhere!(check_rope);
}

fn check_rope<B: KernelBackend>(site: &Site) {
    use tune_kernels::rope::reference::{self, Sizes};
    for dtype in site.dtypes.clone() {
        // The last one rotates 16 of 24 dimensions.
        for (tokens, heads, head_dim, width) in
            [(1, 1, 2, 1), (5, 3, 64, 32), (700, 2, 32, 16), (9, 4, 24, 8)]
        {
            let what = format!("rope on {} {dtype:?} [{tokens}, {heads}, {head_dim}] {width}", site.name);
            let positions = 40;
            let angles = random(positions * width, 4, 3.0);
            let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
            let table = RotaryTable {
                cos: tensor::<B, 2>(&cos, [positions, width], burn::tensor::DType::F32),
                sin: tensor::<B, 2>(&sin, [positions, width], burn::tensor::DType::F32),
            };
            let position_ids: Vec<usize> = (0..tokens).map(|token| token * 7 % positions).collect();
            let sizes = Sizes { heads, head_dim, width };
            let shape = [tokens, heads, head_dim];
            let x = random_in(tokens * heads * head_dim, 1, 1.0, dtype);
            let dy = random_in(x.len(), 2, 1.0, dtype);
            let on_device: Vec<i32> = position_ids.iter().map(|position| *position as i32).collect();
            let turn = |values: &[f32], direction| {
                rope(tensor::<B, 3>(values, shape, dtype), &table, &ids(&on_device), direction)
            };
            let expected = reference::forward(&x, &cos, &sin, &position_ids, sizes);
            assert_close(&what, &values(&turn(&x, Direction::Forward)), &expected, tolerance(dtype));
            let expected = reference::backward(&cos, &sin, &position_ids, &dy, sizes);
            let found = values(&turn(&dy, Direction::Backward));
            assert_close(&format!("d {what}"), &found, &expected, tolerance(dtype));
        }
    }
}

#[test]
fn swiglu_agrees_with_the_oracle() {
    everywhere!(check_swiglu);
}

fn check_swiglu<B: KernelBackend>(site: &Site) {
    use tune_kernels::swiglu::reference;
    for dtype in site.dtypes.clone() {
        for (rows, width) in [(1, 1), (3, 173), (40, 1536)] {
            let what = format!("swiglu on {} {dtype:?} [{rows}, {width}]", site.name);
            let [gate, up, dy] = [1, 2, 3].map(|seed| random_in(rows * width, seed, 4.0, dtype));
            let (dgate, dup) = reference::backward(&gate, &up, &dy);
            let expected = reference::forward(&gate, &up);
            let [gate, up, dy] = [&gate, &up, &dy].map(|x| tensor::<B, 2>(x, [rows, width], dtype));
            assert_close(&what, &values(&swiglu(&gate, &up)), &expected, tolerance(dtype));
            let (found_gate, found_up) = swiglu_backward(gate, up, dy);
            assert_close(&format!("dgate {what}"), &values(&found_gate), &dgate, tolerance(dtype));
            assert_close(&format!("dup {what}"), &values(&found_up), &dup, tolerance(dtype));
        }
    }
}

/// Far from zero the sigmoid saturates, without infinities or NaN.
#[test]
fn swiglu_saturates() {
    everywhere!(check_saturation);
}

fn check_saturation<B: KernelBackend>(_: &Site) {
    let gate = tensor::<B, 2>(&[-1000.0, -100.0, 0.0, 100.0, 1000.0], [1, 5], burn::tensor::DType::F32);
    let up = tensor::<B, 2>(&[2.0; 5], [1, 5], burn::tensor::DType::F32);
    let y = values(&swiglu(&gate, &up));
    assert_eq!(y[2..], [0.0, 200.0, 2000.0]);
    assert!(y[..2].iter().all(|y| y.abs() < 1e-30), "{y:?}");
}
