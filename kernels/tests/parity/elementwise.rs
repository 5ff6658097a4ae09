//! RMSNorm, rotary embedding, SwiGLU and scaled columns.

use burn::tensor::DType;
use tune_kernels::KernelBackend;
use tune_kernels::check::elementwise;
use tune_kernels::column_scale::{column_scale, column_scale_backward};
use tune_kernels::rope::reference::Sizes;
use tune_kernels::rope::{Direction, Positions, RotaryTable, rope};
use tune_kernels::swiglu::swiglu;

use crate::support::{
    Site, assert_close, assert_within, everywhere, random, random_in, tensor, tolerance, values,
};

#[test]
fn rms_norm_agrees_with_the_oracle() {
    everywhere!(check_rms_norm);
}

fn check_rms_norm<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for (rows, width) in [(1, 1), (1, 64), (3, 37), (7, 576), (300, 96), (130, 1000)] {
            let device = B::Device::default();
            let found = elementwise::check_rms_norm::<B>(Site::on(&device, dtype), rows, width);
            assert_within(&format!("rms_norm in {dtype:?} on {}", site.name), found);
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
            let device = B::Device::default();
            let sizes = Sizes { heads, head_dim, width };
            let found = elementwise::check_rope::<B>(Site::on(&device, dtype), tokens, sizes);
            assert_within(&format!("rope in {dtype:?} on {}", site.name), found);
        }
    }
}

/// A table that ends before a position is refused alike on every backend, before anything runs.
#[test]
fn rope_refuses_positions_outside_its_table() {
    everywhere!(check_outside);
}

fn check_outside<B: KernelBackend>(site: &Site) {
    let turn = |last: u32| {
        let angles = || tensor::<B, 2>(&random(3 * 2, 4, 3.0), [3, 2], DType::F32);
        let table = RotaryTable { cos: angles(), sin: angles() };
        let positions = Positions::new(&[last, 0], &Default::default());
        let x = tensor::<B, 3>(&random(2 * 4, 1, 1.0), [2, 1, 4], DType::F32);
        values(&rope(x, &table, &positions, Direction::Forward))
    };
    assert_eq!(turn(2).len(), 8, "on {}", site.name);
    for last in [3, u32::MAX] {
        let turned = std::panic::catch_unwind(|| turn(last));
        assert!(turned.is_err(), "position {last} in a table of 3 on {}", site.name);
    }
}

#[test]
fn swiglu_agrees_with_the_oracle() {
    everywhere!(check_swiglu);
}

fn check_swiglu<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for (rows, width) in [(1, 1), (3, 173), (40, 1536)] {
            let device = B::Device::default();
            let found = elementwise::check_swiglu::<B>(Site::on(&device, dtype), rows, width);
            assert_within(&format!("swiglu in {dtype:?} on {}", site.name), found);
        }
    }
}

/// Far from zero the sigmoid saturates, without infinities or NaN.
#[test]
fn swiglu_saturates() {
    everywhere!(check_saturation);
}

fn check_saturation<B: KernelBackend>(_: &Site) {
    let gate = tensor::<B, 2>(&[-1000.0, -100.0, 0.0, 100.0, 1000.0], [1, 5], DType::F32);
    let up = tensor::<B, 2>(&[2.0; 5], [1, 5], DType::F32);
    let y = values(&swiglu(&gate, &up));
    assert_eq!(y[2..], [0.0, 200.0, 2000.0]);
    assert!(y[..2].iter().all(|y| y.abs() < 1e-30), "{y:?}");
}

#[test]
fn scaled_columns_agree_with_the_oracle() {
    everywhere!(check_column_scale);
}

fn check_column_scale<B: KernelBackend>(site: &Site) {
    use tune_kernels::column_scale::reference;
    for dtype in site.dtypes.clone() {
        for (rows, width) in [(1, 1), (1, 300), (7, 37), (130, 257), (600, 512)] {
            let what = format!("column_scale on {} {dtype:?} [{rows}, {width}]", site.name);
            let u = random_in(rows * width, 1, 2.0, dtype);
            let factors = random(width, 2, 1.5);
            let bias = random_in(width, 3, 1.0, dtype);
            let residual = random_in(rows * width, 4, 1.0, dtype);
            let on_device = tensor::<B, 2>(&u, [rows, width], dtype);
            let device_factors = tensor::<B, 2>(&factors, [1, width], DType::F32);
            let device_bias = tensor::<B, 1>(&bias, [width], dtype);
            let device_residual = tensor::<B, 2>(&residual, [rows, width], dtype);
            for (has_bias, has_residual) in [(false, false), (true, false), (false, true), (true, true)] {
                let y = column_scale(
                    &on_device,
                    &device_factors,
                    has_bias.then_some(&device_bias),
                    has_residual.then_some(&device_residual),
                );
                let bias = has_bias.then_some(bias.as_slice());
                let residual = has_residual.then_some(residual.as_slice());
                let expected = reference::forward(&u, &factors, bias, residual);
                assert_eq!(y.dtype(), dtype);
                assert_close(&what, &values(&y), &expected, tolerance(dtype));
            }
            let dy = random_in(rows * width, 5, 1.0, dtype);
            let upstream = tensor::<B, 2>(&dy, [rows, width], dtype);
            let (du, dfactors) = column_scale_backward(&on_device, &device_factors, &upstream);
            let (expected_u, expected_factors) = reference::backward(&u, &factors, &dy);
            assert_close(&format!("du of {what}"), &values(&du), &expected_u, tolerance(dtype));
            assert_close(&format!("df of {what}"), &values(&dfactors), &expected_factors, 1e-5);
        }
    }
}
