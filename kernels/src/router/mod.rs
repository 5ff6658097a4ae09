//! Which experts compute a token, and how much each counts.
//!
//! ```text
//! softmax   p = softmax(z)      chosen: the largest z        w = factor · p          or factor · p / Σ p of the chosen
//! sigmoid   p = σ(z)            chosen: the largest p + c    w = factor · p          or factor · p / Σ p of the chosen
//! ```
//!
//! `z` `[tokens, experts]` are the router's logits in the compute dtype, `c` `[experts]` corrects the choice alone; `w`
//! `[tokens, used]` is f32, the largest first, ties to the lower expert. Normalised softmax weights are the softmax of the
//! chosen logits, so "top k, then softmax" is the same as "softmax, then top k, normalised". The choice is a constant of the
//! gradient: dL/dz follows from dL/dw.
//!
//! The chosen experts are read by the host, which plans the products of each: on a GPU that waits for the device.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn_tensor::{DType, Tensor, backend::Backend};

/// Routers on a backend.
pub trait RouterOps: Backend {
    /// [`route`].
    fn route(logits: &Tensor<Self, 2>, correction: Option<&Tensor<Self, 1>>, router: Router) -> Routes<Self>;

    /// [`route_backward`].
    fn route_backward(
        logits: &Tensor<Self, 2>,
        chosen: &[u32],
        router: Router,
        dweights: &Tensor<Self, 2>,
    ) -> Tensor<Self, 2>;
}

/// What a logit becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Score {
    /// Its share among those of all experts.
    Softmax,
    /// A number between 0 and 1 for each expert by itself.
    Sigmoid,
}

/// How experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// Experts of a token.
    pub used: usize,
    /// What a logit becomes.
    pub score: Score,
    /// Whether the weights of a token are divided by their sum.
    pub normalised: bool,
    /// Multiplies every weight.
    pub factor: f32,
}

/// Added to the sum that weights are divided by: sigmoids may all be 0.
const LEAST: f32 = 1e-20;

/// The experts of each token, and their weights.
#[derive(Clone, Debug)]
pub struct Routes<B: Backend> {
    /// `used` experts for each token.
    pub chosen: Vec<u32>,
    /// f32 `[tokens, used]`.
    pub weights: Tensor<B, 2>,
}

/// Chooses and weighs the experts of every token: see the module's page.
///
/// # Shapes
/// `logits` `[tokens, experts]` with at least `used` experts, `correction` f32 `[experts]`.
///
/// # Panics
/// If shapes do not fit, the correction is not f32, or the dtype of logits is none of f32, bf16, f16.
pub fn route<B: RouterOps>(
    logits: &Tensor<B, 2>,
    correction: Option<&Tensor<B, 1>>,
    router: Router,
) -> Routes<B> {
    let [_, experts] = logits.dims();
    assert!(router.used <= experts, "route: {} of {experts} experts", router.used);
    if let Some(correction) = correction {
        assert_eq!(correction.dims(), [experts], "route: one correction for each expert");
        assert_eq!(correction.dtype(), DType::F32, "route: corrections are f32");
    }
    B::route(logits, correction, router)
}

/// The gradient of the logits, in their dtype, for that of the weights; `chosen` are those of [`route`].
///
/// # Shapes
/// `logits` and the result `[tokens, experts]`, `dweights` f32 `[tokens, used]`.
///
/// # Panics
/// If shapes do not fit, or `dweights` is not f32.
pub fn route_backward<B: RouterOps>(
    logits: &Tensor<B, 2>,
    chosen: &[u32],
    router: Router,
    dweights: &Tensor<B, 2>,
) -> Tensor<B, 2> {
    let [tokens, experts] = logits.dims();
    assert_eq!(dweights.dims(), [tokens, router.used], "route_backward: one gradient for each weight");
    assert_eq!(dweights.dtype(), DType::F32, "route_backward: gradients of weights are f32");
    assert_eq!(chosen.len(), tokens * router.used, "route_backward: the choice is of other tokens");
    assert!(chosen.iter().all(|expert| (*expert as usize) < experts), "route_backward: an unknown expert");
    B::route_backward(logits, chosen, router, dweights)
}
