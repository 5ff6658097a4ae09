//! The AdamW update, as `torch.optim.AdamW` computes it, and the norm that gradients are clipped by.
//!
//! Loss and norm stay on the device: the update reads them, clips by the norm, and changes nothing unless all of them are
//! finite.
//!
//! ```text
//! p ← p · (1 − η λ)
//! m ← m + (1 − β₁)(g − m)          v ← β₂ v + (1 − β₂) g²
//! p ← p − η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```
//!
//! Everything is f32; the scalars are computed in f64 and rounded once.
//!
//! Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (<https://arxiv.org/abs/1711.05101>).

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn_tensor::{DType, Tensor, backend::Backend};

/// The optimizer's update on a backend.
pub trait AdamWOps: Backend {
    /// [`adamw`].
    fn adamw(
        updates: Vec<Update<Self>>,
        guard: &Guard<Self>,
        config: &AdamWConfig,
        learning_rate: f64,
        step: u64,
    ) -> Vec<(Tensor<Self, 2>, Moments<Self>)>;

    /// [`norm`] of at least one tensor.
    fn norm(tensors: &[&Tensor<Self, 2>]) -> Tensor<Self, 1>;
}

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta_1: f64,
    /// Decay of the second moment.
    pub beta_2: f64,
    /// Added outside the root.
    pub epsilon: f64,
    /// Decoupled: the parameter is multiplied by `1 − learning_rate · weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// torch's constants, without decay.
    fn default() -> Self {
        Self { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// Running moments of one parameter's gradient, f32, zero before the first step.
#[derive(Clone, Debug)]
pub struct Moments<B: Backend> {
    /// Of the gradient.
    pub first: Tensor<B, 2>,
    /// Of its square.
    pub second: Tensor<B, 2>,
}

impl<B: Backend> Moments<B> {
    /// Zeros in the shape of `parameter`.
    pub fn zeros_like(parameter: &Tensor<B, 2>) -> Self {
        Self { first: parameter.zeros_like(), second: parameter.zeros_like() }
    }
}

/// One parameter, its gradient and its moments.
#[derive(Clone, Debug)]
pub struct Update<B: Backend> {
    /// The trained values, f32.
    pub parameter: Tensor<B, 2>,
    /// Its gradient, f32, of the same shape; `None` counts as zero.
    pub gradient: Option<Tensor<B, 2>>,
    /// Its moments.
    pub moments: Moments<B>,
}

/// What decides a step's update. The values stay on the device, so that the host need not wait for them.
#[derive(Clone, Debug)]
pub struct Guard<B: Backend> {
    /// Losses of the step, then [`norm`] of its gradients, `[losses + 1]`, f32. Unless all are finite, parameters and
    /// moments stay unchanged.
    pub numbers: Tensor<B, 1>,
    /// Factor of the gradients: one over the objective's count of the step.
    pub scale: f64,
    /// Limit of `scale` times the norm; larger gradients are scaled down to it. 0: no limit.
    pub max_norm: f64,
}

/// Guards the clipping factor against a zero norm, as torch does.
pub(crate) const CLIP_EPSILON: f64 = 1e-6;

impl<B: Backend> Guard<B> {
    /// For an update without conditions, gradients times `scale`.
    pub fn open(scale: f64, device: &B::Device) -> Self {
        Self { numbers: Tensor::zeros([1], (device, DType::F32)), scale, max_norm: 0.0 }
    }
}

/// Updates all parameters in one pass; `step` counts from 1. Gradients are scaled and clipped as `guard` says while they
/// are read; with a number that is not finite nothing changes. A tensor held by this call alone is updated in place.
///
/// # Panics
/// If shapes differ, a dtype is not f32, or `step` is 0.
pub fn adamw<B: AdamWOps>(
    updates: Vec<Update<B>>,
    guard: &Guard<B>,
    config: &AdamWConfig,
    learning_rate: f64,
    step: u64,
) -> Vec<(Tensor<B, 2>, Moments<B>)> {
    assert!(step > 0, "adamw: steps count from 1");
    assert!(guard.numbers.dims() != [0], "adamw: a guard holds the norm at least");
    for Update { parameter, gradient, moments } in &updates {
        let others = [("first moment", &moments.first), ("second moment", &moments.second)];
        for (name, other) in
            others.into_iter().chain(gradient.as_ref().map(|gradient| ("gradient", gradient)))
        {
            assert_eq!(
                other.dims(),
                parameter.dims(),
                "adamw: the {name} has another shape than the parameter"
            );
        }
    }
    B::adamw(updates, guard, config, learning_rate, step)
}

/// √(Σ x²) over all tensors, `[1]`, f32, in an order that depends on their shapes alone; 0 for no tensor.
pub fn norm<B: AdamWOps>(tensors: &[&Tensor<B, 2>], device: &B::Device) -> Tensor<B, 1> {
    match tensors {
        [] => Tensor::zeros([1], (device, DType::F32)),
        tensors => B::norm(tensors),
    }
}

/// The scalars of one step.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) decay: f32,
    /// 1 − β₁.
    pub(crate) first: f32,
    pub(crate) beta_2: f32,
    /// 1 − β₂.
    pub(crate) second: f32,
    /// √(1 − β₂ᵗ).
    pub(crate) root_correction: f32,
    pub(crate) epsilon: f32,
    /// −η / (1 − β₁ᵗ).
    pub(crate) step_size: f32,
}

impl Factors {
    pub(crate) fn new(config: &AdamWConfig, learning_rate: f64, step: u64) -> Self {
        let AdamWConfig { beta_1, beta_2, epsilon, weight_decay } = *config;
        let correction_1 = 1.0 - beta_1.powf(step as f64);
        let correction_2 = 1.0 - beta_2.powf(step as f64);
        Self {
            decay: (1.0 - learning_rate * weight_decay) as f32,
            first: (1.0 - beta_1) as f32,
            beta_2: beta_2 as f32,
            second: (1.0 - beta_2) as f32,
            root_correction: correction_2.sqrt() as f32,
            epsilon: epsilon as f32,
            step_size: (-learning_rate / correction_1) as f32,
        }
    }
}
