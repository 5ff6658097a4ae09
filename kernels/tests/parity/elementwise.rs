//! RMSNorm, rotary embedding and SwiGLU.

use burn_flex::Flex;
use tune_kernels::rms_norm::rms_norm;
use tune_kernels::rope::{RotaryTable, rope};
use tune_kernels::seed::backward_with;
use tune_kernels::swiglu::swiglu;

use crate::support::{A, DTYPES, assert_close, gradient, ids, random, random_in, tensor, tolerance, values};

#[test]
fn rms_norm_agrees_with_the_oracle() {
    use tune_kernels::rms_norm::reference;
    for dtype in DTYPES {
        for (rows, width) in [(1, 1), (1, 64), (3, 37), (7, 576), (300, 96), (130, 1000)] {
            let what = format!("rms_norm {dtype:?} [{rows}, {width}]");
            let x = random_in(rows * width, 1, 2.0, dtype);
            let weight = random_in(width, 2, 1.0, dtype);
            let dy = random_in(rows * width, 3, 1.0, dtype);
            let leaf = tensor::<A, 2>(&x, [rows, width], dtype).require_grad();
            let y = rms_norm(leaf.clone(), &tensor::<Flex, 1>(&weight, [width], dtype), 1e-5);
            assert_eq!(y.dtype(), dtype);
            assert_close(&what, &values(&y), &reference::forward(&x, &weight, 1e-5), tolerance(dtype));
            let gradients = backward_with(y, tensor::<Flex, 2>(&dy, [rows, width], dtype));
            let expected = reference::backward(&x, &weight, 1e-5, &dy);
            // A single column normalises to its sign: the gradient is what is left of a cancellation.
            let tolerance = if width == 1 { 1.0 } else { tolerance(dtype) };
            assert_close(&format!("d {what}"), &gradient(&leaf, &gradients), &expected, tolerance);
        }
    }
}

#[test]
fn rope_agrees_with_the_oracle() {
    use tune_kernels::rope::reference::{self, Sizes};
    for dtype in DTYPES {
        // The last one rotates 16 of 24 dimensions.
        for (tokens, heads, head_dim, width) in
            [(1, 1, 2, 1), (5, 3, 64, 32), (700, 2, 32, 16), (9, 4, 24, 8)]
        {
            let what = format!("rope {dtype:?} [{tokens}, {heads}, {head_dim}] {width}");
            let positions = 40;
            let angles = random(positions * width, 4, 3.0);
            let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
            let table = RotaryTable {
                cos: tensor::<Flex, 2>(&cos, [positions, width], burn::tensor::DType::F32),
                sin: tensor::<Flex, 2>(&sin, [positions, width], burn::tensor::DType::F32),
            };
            let position_ids: Vec<usize> = (0..tokens).map(|token| token * 7 % positions).collect();
            let sizes = Sizes { heads, head_dim, width };
            let shape = [tokens, heads, head_dim];
            let x = random_in(tokens * heads * head_dim, 1, 1.0, dtype);
            let dy = random_in(x.len(), 2, 1.0, dtype);
            let leaf = tensor::<A, 3>(&x, shape, dtype).require_grad();
            let on_device: Vec<i32> = position_ids.iter().map(|position| *position as i32).collect();
            let y = rope(leaf.clone(), &table, &ids(&on_device));
            let expected = reference::forward(&x, &cos, &sin, &position_ids, sizes);
            assert_close(&what, &values(&y), &expected, tolerance(dtype));
            let gradients = backward_with(y, tensor::<Flex, 3>(&dy, shape, dtype));
            let expected = reference::backward(&cos, &sin, &position_ids, &dy, sizes);
            assert_close(&format!("d {what}"), &gradient(&leaf, &gradients), &expected, tolerance(dtype));
        }
    }
}

#[test]
fn swiglu_agrees_with_the_oracle() {
    use tune_kernels::swiglu::reference;
    for dtype in DTYPES {
        for (rows, width) in [(1, 1), (3, 173), (40, 1536)] {
            let what = format!("swiglu {dtype:?} [{rows}, {width}]");
            let [gate, up, dy] = [1, 2, 3].map(|seed| random_in(rows * width, seed, 4.0, dtype));
            let gate_leaf = tensor::<A, 2>(&gate, [rows, width], dtype).require_grad();
            let up_leaf = tensor::<A, 2>(&up, [rows, width], dtype).require_grad();
            let y = swiglu(gate_leaf.clone(), up_leaf.clone());
            assert_close(&what, &values(&y), &reference::forward(&gate, &up), tolerance(dtype));
            let gradients = backward_with(y, tensor::<Flex, 2>(&dy, [rows, width], dtype));
            let (dgate, dup) = reference::backward(&gate, &up, &dy);
            assert_close(
                &format!("dgate {what}"),
                &gradient(&gate_leaf, &gradients),
                &dgate,
                tolerance(dtype),
            );
            assert_close(&format!("dup {what}"), &gradient(&up_leaf, &gradients), &dup, tolerance(dtype));
        }
    }
}

/// Far from zero the sigmoid saturates, without infinities or NaN.
#[test]
fn swiglu_saturates() {
    let gate = tensor::<Flex, 2>(&[-1000.0, -100.0, 0.0, 100.0, 1000.0], [1, 5], burn::tensor::DType::F32);
    let up = tensor::<Flex, 2>(&[2.0; 5], [1, 5], burn::tensor::DType::F32);
    let y = values(&swiglu(gate, up));
    assert_eq!(y[2..], [0.0, 200.0, 2000.0]);
    assert!(y[..2].iter().all(|y| y.abs() < 1e-30), "{y:?}");
}
