//! Norms, rotary embedding, activations and scaled columns.

use burn_tensor::DType;
use tune_kernels::KernelBackend;
use tune_kernels::activation::Function;
use tune_kernels::check::{elementwise, rows};
use tune_kernels::gated::{Activation, gated, gated_backward};
use tune_kernels::rms_norm::{RmsNorm, Rounding, rms_norm};
use tune_kernels::rope::reference::Sizes;
use tune_kernels::rope::{Direction, Pairs, Positions, RotaryTable, rope};

use crate::support::{Site, assert_within, everywhere, random, tensor, values};

#[test]
fn rms_norm_agrees_with_the_oracle() {
    everywhere!(check_rms_norm);
}

fn check_rms_norm<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for (rows, width) in [(1, 1), (1, 64), (3, 37), (7, 576), (300, 96), (130, 1000)] {
            let device = B::Device::default();
            for norm in elementwise::norms() {
                let found = elementwise::check_rms_norm::<B>(Site::on(&device, dtype), rows, width, norm);
                assert_within(&format!("rms_norm in {dtype:?} on {}", site.name), found);
            }
        }
    }
}

/// One rounding more shows in the last digit of a product.
#[test]
fn rms_norm_rounds_where_it_says() {
    everywhere!(check_rounding);
}

fn check_rounding<B: KernelBackend>(site: &Site) {
    if !site.dtypes.contains(&DType::BF16) {
        return;
    }
    let x = tensor::<B, 2>(&[1.0, 1.0078125, 0.5, 1.3203125], [1, 4], DType::BF16);
    let weight_values = [1.0078125f32, 1.0078125, 1.9921875, 1.6640625];
    let weight = tensor::<B, 1>(&weight_values, [4], DType::BF16);
    let row = values(&x);
    let mean = row.iter().map(|x| f64::from(x * x)).sum::<f64>() / 4.0;
    let r = (1.0 / (mean + 1e-5).sqrt()) as f32;
    let bf16 = |value: f32| half::bf16::from_f32(value).to_f32();
    let products = |round: &dyn Fn(f32) -> f32| -> Vec<f32> {
        row.iter().zip(weight_values).map(|(x, weight)| bf16(round(x * r) * weight)).collect()
    };
    let (before, last) = (products(&bf16), products(&|value| value));
    assert_ne!(before, last);
    let llama = RmsNorm::from(1e-5);
    assert_eq!(values(&rms_norm(&x, &weight, llama)), before, "on {}", site.name);
    let late = RmsNorm { rounding: Rounding::Last, ..llama };
    assert_eq!(values(&rms_norm(&x, &weight, late)), last, "on {}", site.name);
}

#[test]
fn layer_norm_agrees_with_the_oracle() {
    everywhere!(check_layer_norm);
}

fn check_layer_norm<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for (rows, width) in [(1, 1), (1, 64), (3, 37), (7, 576), (130, 1000)] {
            for biased in [false, true] {
                let device = B::Device::default();
                let found = elementwise::check_layer_norm::<B>(Site::on(&device, dtype), rows, width, biased);
                assert_within(&format!("layer_norm in {dtype:?} on {}", site.name), found);
            }
        }
    }
}

#[test]
fn activations_agree_with_the_oracle() {
    everywhere!(check_activation);
}

fn check_activation<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for (rows, width) in [(1, 1), (3, 173), (40, 1536)] {
            for function in Function::ALL {
                let device = B::Device::default();
                let found =
                    elementwise::check_activation::<B>(Site::on(&device, dtype), function, rows, width);
                assert_within(&format!("{function:?} in {dtype:?} on {}", site.name), found);
            }
        }
    }
}

#[test]
fn rope_agrees_with_the_oracle() {
    everywhere!(check_rope);
}

fn check_rope<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        // The last one rotates 16 of 24 dimensions.
        for (tokens, heads, head_dim, width) in
            [(1, 1, 2, 1), (5, 3, 64, 32), (700, 2, 32, 16), (9, 4, 24, 8)]
        {
            for pairs in [Pairs::Halves, Pairs::Neighbours] {
                let device = B::Device::default();
                let sizes = Sizes { heads, head_dim, width, pairs };
                let found = elementwise::check_rope::<B>(Site::on(&device, dtype), tokens, sizes);
                assert_within(&format!("rope in {dtype:?} on {}", site.name), found);
            }
        }
    }
}

/// A table that ends before a position is refused alike on every backend, before anything runs.
#[test]
fn rope_refuses_positions_outside_its_table() {
    everywhere!(check_outside);
}

fn check_outside<B: KernelBackend>(site: &Site) {
    let rotate = |last: u32| {
        let angles = || tensor::<B, 2>(&random(3 * 2, 4, 3.0), [3, 2], DType::F32);
        let table = RotaryTable { cos: angles(), sin: angles(), pairs: Pairs::Halves };
        let positions = Positions::new(&[last, 0], &Default::default());
        let x = tensor::<B, 3>(&random(2 * 4, 1, 1.0), [2, 1, 4], DType::F32);
        values(&rope(x, &table, &positions, Direction::Forward))
    };
    assert_eq!(rotate(2).len(), 8, "on {}", site.name);
    for last in [3, u32::MAX] {
        let rotated = std::panic::catch_unwind(|| rotate(last));
        assert!(rotated.is_err(), "position {last} in a table of 3 on {}", site.name);
    }
}

#[test]
fn gated_activations_agree_with_the_oracle() {
    everywhere!(check_gated);
}

fn check_gated<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for (rows, width) in [(1, 1), (3, 173), (40, 1536)] {
            let device = B::Device::default();
            for activation in
                [Activation::Silu, Activation::GeluTanh, Activation::Sigmoid, Activation::Clamped]
            {
                let on = Site::on(&device, dtype);
                let found = elementwise::check_gated::<B>(on, activation, rows, width);
                assert_within(&format!("{activation:?} in {dtype:?} on {}", site.name), found);
            }
        }
    }
}

/// Far from zero the activations and their slopes are zero or linear, without infinities or NaN.
#[test]
fn gated_activations_saturate() {
    everywhere!(check_saturation);
}

fn check_saturation<B: KernelBackend>(_: &Site) {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let gate = tensor::<B, 2>(&[-1e30, -1000.0, -100.0, 0.0, 100.0, 1000.0, 1e30], [1, 7], DType::F32);
        let up = tensor::<B, 2>(&[2.0; 7], [1, 7], DType::F32);
        let y = values(&gated(activation, &gate, &up));
        assert_eq!(y[3..], [0.0, 200.0, 2000.0, 2e30], "{activation:?}");
        assert!(y[..3].iter().all(|y| y.abs() < 1e-20), "{activation:?}: {y:?}");
        let dy = tensor::<B, 2>(&[1.0; 7], [1, 7], DType::F32);
        let (dgate, dup) = gated_backward(activation, gate, up, dy);
        let (dgate, dup) = (values(&dgate), values(&dup));
        assert_eq!(dgate[3..], [1.0, 2.0, 2.0, 2.0], "{activation:?}");
        assert!(dgate[..3].iter().all(|slope| slope.abs() < 1e-20), "{activation:?}: {dgate:?}");
        assert_eq!(dup[3..], [0.0, 100.0, 1000.0, 1e30], "{activation:?}");
    }
}

#[test]
fn scaled_columns_agree_with_the_oracle() {
    everywhere!(check_column_scale);
}

fn check_column_scale<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for (height, width) in [(1, 1), (1, 300), (7, 37), (130, 257), (600, 512)] {
            let device = B::Device::default();
            let found = rows::check_column_scale(Site::on::<B>(&device, dtype), height, width);
            assert_within(&format!("column_scale in {dtype:?} on {}", site.name), found);
        }
    }
}
