//! The gated delta rule: a recurrent state for each value head, which forgets, and writes what it does not know yet.
//!
//! Per document and value head, with the queries and keys of its key head `h / (values / keys)` and a state S
//! `[key_dim, value_dim]` that begins at zero:
//!
//! ```text
//! n(x) = x / √(Σ x² + 10⁻⁶)     q̂ = n(q) / √key_dim     k̂ = n(k)
//! β = σ(write)                  g = −exp(log_rate) · softplus(decay + bias)
//! S ← exp(g[t]) S
//! Δ[t] = β[t] (v[t] − Sᵀ k̂[t])
//! S ← S + k̂[t] Δ[t]ᵀ            y[t] = Sᵀ q̂[t]
//! ```
//!
//! Computed in chunks of [`CHUNK`] tokens, in which G is the running sum of g, `D[t, s] = exp(G[t] − G[s])` for s ≤ t, and S
//! the state before the chunk:
//!
//! ```text
//! A = β D (K̂ K̂ᵀ) below the diagonal          (1 + A) Δ = R = β (V − exp(G) K̂ S)
//! Y = exp(G) Q̂ S + P Δ                        P = D (Q̂ K̂ᵀ) up to the diagonal
//! S ← exp(G_last) S + (exp(G_last − G) K̂)ᵀ Δ
//! ```
//!
//! The backward computes the states of a head's chunks again, then walks them from the last to the first; E is the gradient
//! of the state behind a chunk, and products of masks are as above:
//!
//! ```text
//! dΔ = Pᵀ dY + (exp(G_last − G) K̂) E         (1 + A)ᵀ dR = dΔ         dV = dU = β dR
//! dP = dY Δᵀ     dA = −dR Δᵀ     X = exp(G) [dY; −dU]
//! [dQ̂; row] = X Sᵀ + [D dP; β D dA] K̂        col = (D dP)ᵀ Q̂ + (β D dA)ᵀ K̂ + exp(G_last − G) Δ Eᵀ
//! dK̂ = row + col     dG = q̂·dq̂ + k̂·(row − col), and ⟨S_next, E⟩ at the last     dβ = dR·Δ / β
//! E ← exp(G_last) E + [Q̂; K̂]ᵀ X
//! ```
//!
//! The state is f32 whatever the compute dtype, and every other value between input and output too. No state is saved for
//! the backward.
//!
//! Yang et al., *Gated Delta Networks* (<https://arxiv.org/abs/2412.06464>), and *Parallelizing Linear Transformers with the
//! Delta Rule* (<https://arxiv.org/abs/2406.06484>) for the chunks.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;
mod sizes;

use burn_tensor::{DType, Tensor, backend::Backend};

use crate::attention::DocumentOffsets;
pub(crate) use cpu::task_numbers;
use sizes::EPSILON;
pub use sizes::{CHUNK, DeltaHeads};

/// The gated delta rule on a backend.
pub trait DeltaRuleOps: Backend {
    /// [`delta_rule`], and the state behind the only document where `state` is the one before it.
    fn delta_rule(
        call: DeltaRule<'_, Self>,
        state: Option<Tensor<Self, 3>>,
    ) -> (Tensor<Self, 2>, Option<Tensor<Self, 3>>);

    /// [`delta_rule_backward`].
    fn delta_rule_backward(call: DeltaRule<'_, Self>, dy: &Tensor<Self, 2>) -> DeltaGradients<Self>;
}

/// The arguments of [`delta_rule`].
#[derive(Debug)]
pub struct DeltaRule<'a, B: Backend> {
    /// Queries of all key heads, their keys, then the values of all value heads:
    /// `[tokens, 2 · keys · key_dim + values · value_dim]`.
    pub mixed: &'a Tensor<B, 2>,
    /// What a token's decay follows from, `[tokens, values]`, in the dtype of `mixed`.
    pub decay: &'a Tensor<B, 2>,
    /// What the strength of its write follows from, alike.
    pub write: &'a Tensor<B, 2>,
    /// Logarithm of each head's rate of decay, f32 `[values]`; frozen.
    pub log_rate: &'a Tensor<B, 1>,
    /// Added to `decay`, f32 `[values]`; frozen.
    pub bias: &'a Tensor<B, 1>,
    /// Numbers and widths of heads.
    pub heads: DeltaHeads,
    /// Where documents begin and end: its queries. A state begins anew with each.
    pub documents: &'a DocumentOffsets,
}

impl<B: Backend> Clone for DeltaRule<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for DeltaRule<'_, B> {}

/// Gradients of [`delta_rule`]'s arguments, each in its shape and dtype.
#[derive(Clone, Debug)]
pub struct DeltaGradients<B: Backend> {
    /// Of queries, keys and values.
    pub mixed: Tensor<B, 2>,
    /// Of `decay`.
    pub decay: Tensor<B, 2>,
    /// Of `write`.
    pub write: Tensor<B, 2>,
}

/// The outputs of all value heads, `[tokens, values · value_dim]`, in the dtype of `mixed`.
///
/// # Panics
/// If shapes, dtypes or documents do not fit.
pub fn delta_rule<B: DeltaRuleOps>(call: DeltaRule<'_, B>) -> Tensor<B, 2> {
    check(call);
    B::delta_rule(call, None).0
}

/// [`delta_rule`] of one document that continues an earlier part: from the state before it, f32
/// `[values, key_dim, value_dim]`, to the state behind it.
///
/// # Panics
/// As [`delta_rule`], and if there is not exactly one document or the state does not fit.
pub fn delta_rule_onwards<B: DeltaRuleOps>(
    call: DeltaRule<'_, B>,
    state: Tensor<B, 3>,
) -> (Tensor<B, 2>, Tensor<B, 3>) {
    check(call);
    let DeltaHeads { values, key_dim, value_dim, .. } = call.heads;
    assert_eq!(call.documents.documents().len(), 1, "delta rule: a state belongs to one document");
    let fits = state.dims() == [values, key_dim, value_dim] && state.dtype() == DType::F32;
    assert!(fits, "delta rule: a state {:?} in {:?}", state.dims(), state.dtype());
    match B::delta_rule(call, Some(state)) {
        (y, Some(state)) => (y, state),
        _ => unreachable!("a state goes in and comes out"),
    }
}

/// Gradients for upstream `dy`, `[tokens, values · value_dim]` in the dtype of `mixed`.
///
/// # Panics
/// As [`delta_rule`].
pub fn delta_rule_backward<B: DeltaRuleOps>(call: DeltaRule<'_, B>, dy: &Tensor<B, 2>) -> DeltaGradients<B> {
    check(call);
    let fits = dy.dims() == [call.mixed.dims()[0], call.heads.widths()[2]];
    assert!(fits && dy.dtype() == call.mixed.dtype(), "delta rule: dy is like the output");
    B::delta_rule_backward(call, dy)
}

fn check<B: Backend>(call: DeltaRule<'_, B>) {
    let DeltaRule { mixed, decay, write, log_rate, bias, heads, documents } = call;
    let [tokens, width] = mixed.dims();
    assert!(
        heads.keys > 0 && heads.values.is_multiple_of(heads.keys),
        "delta rule: {} value heads over {} key heads",
        heads.values,
        heads.keys
    );
    assert_eq!(width, heads.widths().iter().sum::<usize>(), "delta rule: {heads:?} in rows of {width}");
    for gate in [decay, write] {
        let fits = gate.dims() == [tokens, heads.values] && gate.dtype() == mixed.dtype();
        assert!(fits, "delta rule: a gate {:?} in {:?}", gate.dims(), gate.dtype());
    }
    for each in [log_rate, bias] {
        let fits = each.dims() == [heads.values] && each.dtype() == DType::F32;
        assert!(fits, "delta rule: one f32 for each value head, not {:?}", each.dims());
    }
    assert_eq!(documents.queries(), tokens, "delta rule: documents do not cover the tokens");
}
