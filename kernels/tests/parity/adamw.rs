//! AdamW over several steps, and the norm.

use burn_tensor::DType;
use tune_kernels::KernelBackend;
use tune_kernels::adamw::{AdamWConfig, Guard, Moments, Update, adamw, norm, reference};

use crate::support::{Site, assert_close, assert_within, everywhere, random, tensor, values};

#[test]
fn several_steps_agree_with_the_oracle() {
    everywhere!(check_steps);
}

fn check_steps<B: KernelBackend>(site: &Site) {
    for shape in [[1, 1], [3, 37], [40, 1000]] {
        let device = B::Device::default();
        let found = tune_kernels::check::adamw::check::<B>(Site::on(&device, DType::F32), shape);
        assert_within(&format!("adamw on {}", site.name), found);
    }
}

/// A tensor that someone else still holds is not changed under them.
#[test]
fn shared_tensors_are_left_alone() {
    everywhere!(check_shared);
}

fn check_shared<B: KernelBackend>(_: &Site) {
    let parameter = tensor::<B, 2>(&[1.0, 2.0], [1, 2], DType::F32);
    let held = parameter.clone();
    let gradient = tensor::<B, 2>(&[1.0, -1.0], [1, 2], DType::F32);
    let moments = Moments::zeros_like(&parameter);
    let update = Update { parameter, gradient: Some(gradient), moments };
    let (updated, _) =
        adamw(vec![update], &Guard::open(1.0, &B::Device::default()), &AdamWConfig::default(), 0.1, 1)
            .remove(0);
    assert_eq!(values(&held), [1.0, 2.0]);
    assert_close("first step", &values(&updated), &[0.9, 2.1], 1e-6);
}

/// Several parameters at once are updated as each alone; one without a gradient only decays.
#[test]
fn one_pass_over_all_is_a_pass_over_each() {
    everywhere!(check_passes);
}

fn check_passes<B: KernelBackend>(_: &Site) {
    let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
    let shapes = [[3, 37], [1, 1], [40, 1000]];
    let update = |index: usize, gradient: bool| {
        let shape: [usize; 2] = shapes[index];
        let make = |seed: u64| tensor::<B, 2>(&random(shape[0] * shape[1], seed, 1.0), shape, DType::F32);
        let parameter = make(1 + index as u64);
        let moments = Moments { first: make(11), second: make(12).abs() };
        let zero = parameter.zeros_like();
        let gradient = if index == 1 { gradient.then_some(zero) } else { Some(make(13)) };
        Update { parameter, gradient, moments }
    };
    let guard = Guard::open(0.3, &B::Device::default());
    let together = adamw((0..3).map(|index| update(index, false)).collect(), &guard, &config, 1e-2, 4);
    for (index, (parameter, moments)) in together.into_iter().enumerate() {
        let (alone, alone_moments) = adamw(vec![update(index, true)], &guard, &config, 1e-2, 4).remove(0);
        assert_eq!(values(&parameter), values(&alone));
        assert_eq!(values(&moments.first), values(&alone_moments.first));
        assert_eq!(values(&moments.second), values(&alone_moments.second));
    }
}

#[test]
fn the_norm_agrees_with_the_oracle() {
    everywhere!(check_norm);
}

fn check_norm<B: KernelBackend>(site: &Site) {
    // The CPU adds in f64 and rounds once, a GPU adds parts in compensated f32.
    let tolerance = if site.is_gpu { 3e-7 } else { 6e-8 };
    for shape in [[1, 1], [3, 37], [100, 1000]] {
        let x = random(shape[0] * shape[1], 1, 1.0);
        let expected = reference::sum_of_squares(&x).sqrt();
        let found = norm(&[&tensor::<B, 2>(&x, shape, DType::F32)], &B::Device::default());
        let found = f64::from(B::read_later(found).wait().expect("a CPU or GPU that answers")[0]);
        assert!((found - expected).abs() <= tolerance * expected, "{found} instead of {expected}");
    }
}
