//! Output head and cross-entropy as one op, so that the logits never exist all at once.
//!
//! With `v = scale · hidden · headᵀ + bias` in f32 and logits `z = v`, or `z = c · tanh(v / c)` under a cap of c, for every
//! supervised row i with target t:
//!
//! ```text
//! loss = Σᵢ ln Σⱼ exp z[i, j] − z[i, t]
//! dhidden[i] = Σⱼ (softmax(z[i])[j] − [j = t]) · z′[i, j] · scale · head[j]          z′ = 1, or 1 − (z / c)²
//! ```
//!
//! Rows without supervision cost nothing. The loss of each supervised row comes with the sum. Where an objective weighs
//! rows, the gradient is that of `Σᵢ weight[i] · lossᵢ`, and the sum stays unweighted. The gradient is computed with the loss, chunk by chunk, so that the logits
//! are computed once; nothing is computed for the head.
//!
//! Hsu et al., *Liger Kernel* (<https://arxiv.org/abs/2410.10989>), for computing the gradient in the forward.

pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub mod reference;
pub mod trained;

use burn_tensor::{DType, Tensor, backend::Backend};

use crate::linear::FrozenWeight;

/// Output head and loss on a backend.
pub trait LossOps: Backend {
    /// [`linear_cross_entropy()`].
    fn linear_cross_entropy(
        hidden: &Tensor<Self, 2>,
        head: &OutputHead<Self>,
        supervised: &[Supervised],
        gradient: HiddenGradient<'_, Self>,
    ) -> LossAndGradient<Self>;
}

/// The target of a position that is not supervised.
pub const IGNORED: i32 = -100;

/// How logits follow from the products of hidden states and head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logits {
    /// Factor on the products.
    pub scale: f32,
    /// What logits are bounded by, smoothly; positive.
    pub soft_cap: Option<f32>,
}

impl Logits {
    /// The products themselves.
    pub const PLAIN: Self = Self { scale: 1.0, soft_cap: None };
}

/// An output head. Cloning shares the storage.
#[derive(Clone, Debug)]
pub struct OutputHead<B: Backend> {
    /// `[vocabulary, hidden]`.
    pub weight: FrozenWeight<B>,
    /// `[vocabulary]`.
    pub bias: Option<Tensor<B, 1>>,
    /// What is made of the products.
    pub logits: Logits,
}

impl<B: Backend> From<&FrozenWeight<B>> for OutputHead<B> {
    fn from(weight: &FrozenWeight<B>) -> Self {
        Self { weight: weight.clone(), bias: None, logits: Logits::PLAIN }
    }
}

impl<B: Backend> From<&Self> for OutputHead<B> {
    fn from(head: &Self) -> Self {
        head.clone()
    }
}

/// A row that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supervised {
    /// Row of the hidden states.
    pub row: usize,
    /// Its target, a token id of the vocabulary.
    pub target: usize,
}

/// The gradient that a call computes beside the losses.
#[derive(Clone, Copy, Debug)]
pub enum HiddenGradient<'a, B: Backend> {
    /// None.
    None,
    /// Of the sum of the rows' losses.
    OfSum,
    /// Of the sum of the rows' losses, each times its weight: f32 `[supervised]`, in the rows' order.
    Weighted(&'a Tensor<B, 1>),
}

/// The losses of a call, and the gradient it was asked for.
#[derive(Clone, Debug)]
pub struct LossAndGradient<B: Backend> {
    /// f32 `[1]`: a sum, never a mean.
    pub loss: Tensor<B, 1>,
    /// The loss of each supervised row, in the rows' order: f32 `[supervised]`.
    pub rows: Tensor<B, 1>,
    /// The gradient of `hidden` `[tokens, hidden]`, in its dtype; zero in rows without supervision. `None` unless
    /// requested.
    pub gradient: Option<Tensor<B, 2>>,
}

/// Σ over supervised rows of −ln softmax(z)\[target\], and on request its gradient.
///
/// # Shapes
/// `hidden` `[tokens, hidden]`, `head` `[vocabulary, hidden]`, `targets` `[tokens]` (a token id or [`IGNORED`]).
///
/// # Panics
/// If shapes do not fit, a target is neither a token id nor [`IGNORED`], a cap is not positive, or a dtype is none of f32, bf16,
/// f16.
pub fn linear_cross_entropy<B: LossOps>(
    hidden: &Tensor<B, 2>,
    head: impl Into<OutputHead<B>>,
    targets: &[i32],
    wants_gradient: bool,
) -> LossAndGradient<B> {
    let head = head.into();
    let gradient = if wants_gradient { HiddenGradient::OfSum } else { HiddenGradient::None };
    B::linear_cross_entropy(hidden, &head, &checked(hidden, &head, targets), gradient)
}

/// [`linear_cross_entropy()`] with the gradient of the weighted losses, `Σᵢ weights[i] · lossᵢ`; `loss` is the unweighted sum.
///
/// # Shapes
/// As [`linear_cross_entropy()`]; `weights` f32 `[supervised]`, in the rows' order.
///
/// # Panics
/// As [`linear_cross_entropy()`], and if `weights` is not f32 or has another length.
pub fn weighted_linear_cross_entropy<B: LossOps>(
    hidden: &Tensor<B, 2>,
    head: impl Into<OutputHead<B>>,
    targets: &[i32],
    weights: &Tensor<B, 1>,
) -> LossAndGradient<B> {
    let head = head.into();
    let supervised = checked(hidden, &head, targets);
    check_weights(weights, supervised.len());
    B::linear_cross_entropy(hidden, &head, &supervised, HiddenGradient::Weighted(weights))
}

/// The rows that count, of operands that fit each other.
fn checked<B: Backend>(hidden: &Tensor<B, 2>, head: &OutputHead<B>, targets: &[i32]) -> Vec<Supervised> {
    let ([tokens, width], shape) = (hidden.dims(), head.weight.shape());
    check_logits(head.bias.as_ref(), head.logits, shape[0]);
    assert_eq!(
        shape[1], width,
        "linear_cross_entropy: hidden states of {width} do not fit the head {shape:?}"
    );
    assert_eq!(targets.len(), tokens, "linear_cross_entropy: one target per token");
    supervised(targets, shape[0])
}

fn check_logits<B: Backend>(bias: Option<&Tensor<B, 1>>, logits: Logits, vocabulary: usize) {
    assert!(
        bias.is_none_or(|bias| bias.dims() == [vocabulary]),
        "linear_cross_entropy: the bias does not fit the head"
    );
    assert!(
        logits.soft_cap.is_none_or(|cap| cap > 0.0),
        "linear_cross_entropy: logits are capped at {:?}",
        logits.soft_cap
    );
}

fn check_weights<B: Backend>(weights: &Tensor<B, 1>, supervised: usize) {
    assert_eq!(weights.dims(), [supervised], "linear_cross_entropy: one weight per supervised row");
    assert_eq!(weights.dtype(), DType::F32, "linear_cross_entropy: weights are f32");
}

/// The rows that count.
///
/// # Panics
/// If a target is neither [`IGNORED`] nor an id of the vocabulary.
fn supervised(targets: &[i32], vocabulary: usize) -> Vec<Supervised> {
    targets
        .iter()
        .enumerate()
        .filter(|(_, target)| **target != IGNORED)
        .map(|(row, target)| {
            let target = usize::try_from(*target).unwrap_or(usize::MAX);
            assert!(
                target < vocabulary,
                "linear_cross_entropy: the target of row {row} is not an id below {vocabulary}"
            );
            Supervised { row, target }
        })
        .collect()
}
