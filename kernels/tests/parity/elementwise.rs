//! RMSNorm, rotary embedding and SwiGLU.

use tune_kernels::KernelBackend;
use tune_kernels::check::elementwise;
use tune_kernels::rope::reference::Sizes;
use tune_kernels::swiglu::swiglu;

use crate::support::{Site, assert_within, everywhere, tensor, values};

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
    let gate = tensor::<B, 2>(&[-1000.0, -100.0, 0.0, 100.0, 1000.0], [1, 5], burn::tensor::DType::F32);
    let up = tensor::<B, 2>(&[2.0; 5], [1, 5], burn::tensor::DType::F32);
    let y = values(&swiglu(&gate, &up));
    assert_eq!(y[2..], [0.0, 200.0, 2000.0]);
    assert!(y[..2].iter().all(|y| y.abs() < 1e-30), "{y:?}");
}
