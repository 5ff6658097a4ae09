//! Frozen linear layers over one input, each with an optional LoRA adapter.
//!
//! ```text
//! y  = x Wᵀ + bias + scaling · t Bᵀ          t = x̃ Aᵀ,  x̃ = dropout(x)
//! dx = dy W + dropout′(dt A)                  dt = scaling · dy B
//! dA = dtᵀ x̃                                  dB = scaling · dyᵀ t
//! ```
//!
//! `x` `[tokens, in]` and `y` `[tokens, out]` are in the compute dtype, sums in f32. `W` `[out, in]` is dense or
//! NF4; NF4 weights are unpacked to f32 and rounded to the compute dtype before they are multiplied, as
//! bitsandbytes does. `A` `[rank, in]` and `scaling · B` `[out, rank]` come from f32 masters: the products see them
//! rounded to the compute dtype, as they see `t`; their gradients are f32. Nothing is computed for `W`.
//!
//! Layers over one input (queries, keys, values; gate, up) are one call: `x` is prepared once, and the gradients of
//! the input are summed before they are rounded.
//!
//! Hu et al., *LoRA* (<https://arxiv.org/abs/2106.09685>).

mod adapters;
#[cfg(feature = "cube")]
mod choice;
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
mod decode;
pub(crate) mod operands;
pub mod reference;

use burn_tensor::{Tensor, backend::Backend};

use crate::dropout::Dropout;
use crate::nf4::Nf4Weight;

/// Frozen linear layers on a backend.
pub trait LinearOps: Backend {
    /// [`linear`].
    fn frozen_linear(
        x: &Tensor<Self, 2>,
        layers: &[Linear<'_, Self>],
        residual: Option<&Tensor<Self, 2>>,
    ) -> Projected<Self>;

    /// [`linear_down`].
    fn frozen_linear_down(x: &Tensor<Self, 2>, layers: &[Linear<'_, Self>]) -> Option<Down<Self>>;

    /// [`linear_backward`].
    fn frozen_linear_backward(request: LinearBackward<'_, Self>) -> LinearGradients<Self>;
}

/// A frozen matrix `[out, in]`. Cloning shares the storage.
#[derive(Clone, Debug)]
pub enum FrozenWeight<B: Backend> {
    /// Dense, usually in the compute dtype; any of f32, bf16 and f16 is read as it is.
    Dense(Tensor<B, 2>),
    /// In 4-bit blocks.
    Nf4(Nf4Weight<B>),
}

impl<B: Backend> FrozenWeight<B> {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Nf4(weight) => weight.shape(),
        }
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.shape().num_elements() * weight.dtype().size(),
            Self::Nf4(weight) => weight.bytes(),
        }
    }
}

/// The adapter of one linear layer.
#[derive(Clone, Debug)]
pub struct Lora<B: Backend> {
    /// `[rank, in]`, f32.
    pub a: Tensor<B, 2>,
    /// `[out, rank]`, f32.
    pub b: Tensor<B, 2>,
    /// alpha / rank, or alpha / √rank under rsLoRA.
    pub scaling: f32,
    /// Dropout of the adapter's input; `None` outside training.
    pub dropout: Option<Dropout>,
}

/// One frozen layer of a call.
#[derive(Debug)]
pub struct Linear<'a, B: Backend> {
    /// `[out, in]`.
    pub weight: &'a FrozenWeight<B>,
    /// `[out]`.
    pub bias: Option<&'a Tensor<B, 1>>,
    /// The adapter, if any.
    pub lora: Option<&'a Lora<B>>,
}

impl<B: Backend> Clone for Linear<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Linear<'_, B> {}

/// The outputs of [`linear`], and what its backward needs.
#[derive(Clone, Debug)]
pub struct Projected<B: Backend> {
    /// `[tokens, out]` of each layer.
    pub outputs: Vec<Tensor<B, 2>>,
    /// For [`linear_backward`]. `None` where no layer has an adapter.
    pub down: Option<Down<B>>,
}

/// The adapters' inner activations `t = x̃ Aᵀ`, which the backward needs.
#[derive(Clone, Debug)]
pub struct Down<B: Backend> {
    /// `t` of all layers side by side, `[tokens, Σ rank]`.
    pub(crate) t: Tensor<B, 2>,
    /// The adapters' matrices as the products read them, if the backend saves them: one behind the other, in the compute
    /// dtype.
    #[cfg_attr(not(feature = "cube"), expect(dead_code, reason = "the CPU saves none"))]
    pub(crate) operands: Option<Tensor<B, 1>>,
}

/// `x Wᵀ (+ bias) (+ scaling · (dropout(x) Aᵀ) Bᵀ) (+ residual)` of one or more layers: see the module's page.
///
/// # Shapes
/// `x` `[tokens, in]`, each weight `[out, in]` and bias `[out]`; each output `[tokens, out]` in the dtype of `x`.
/// `residual` is shaped like the output of the one layer that it may be given with.
///
/// # Panics
/// If shapes do not fit, a dtype is none of f32, bf16, f16, or a residual comes with several layers.
pub fn linear<B: LinearOps>(
    x: &Tensor<B, 2>,
    layers: &[Linear<'_, B>],
    residual: Option<&Tensor<B, 2>>,
) -> Projected<B> {
    let [tokens, width] = x.dims();
    for layer in layers {
        layer.check(width);
    }
    if let Some(residual) = residual {
        assert_eq!(layers.len(), 1, "linear: a residual belongs to one layer");
        let out = layers[0].weight.shape()[0];
        assert_eq!(residual.dims(), [tokens, out], "linear: the residual does not fit the output");
        assert_eq!(residual.dtype(), x.dtype(), "linear: the residual has another dtype than x");
    }
    B::frozen_linear(x, layers, residual)
}

/// [`Projected::down`] of [`linear`] alone, in the same bits: what the backward of a recomputed layer needs where nothing
/// reads its outputs.
///
/// # Shapes
/// As [`linear`].
///
/// # Panics
/// If shapes do not fit, or a dtype is none of f32, bf16, f16.
pub fn linear_down<B: LinearOps>(x: &Tensor<B, 2>, layers: &[Linear<'_, B>]) -> Option<Down<B>> {
    for layer in layers {
        layer.check(x.dims()[1]);
    }
    B::frozen_linear_down(x, layers)
}

impl<B: Backend> Linear<'_, B> {
    pub(crate) fn check(&self, width: usize) {
        let [out, input] = self.weight.shape();
        assert_eq!(width, input, "linear: x of {width} columns does not fit the weight [{out}, {input}]");
        if let Some(bias) = self.bias {
            assert_eq!(bias.dims(), [out], "linear: bias does not fit the weight [{out}, {input}]");
        }
        if let Some(lora) = self.lora {
            let ([rank, a_input], [b_out, b_rank]) = (lora.a.dims(), lora.b.dims());
            assert!(
                a_input == input && b_out == out && b_rank == rank,
                "linear: adapter A [{rank}, {a_input}], B [{b_out}, {b_rank}] does not fit the weight [{out}, {input}]"
            );
        }
    }

    /// Rank of the adapter; 0 without one.
    pub(crate) fn rank(&self) -> usize {
        self.lora.map_or(0, |lora| lora.a.dims()[0])
    }
}

/// The arguments of [`linear_backward`].
#[derive(Debug)]
pub struct LinearBackward<'a, B: Backend> {
    /// The input of the forward; needed where a layer has an adapter.
    pub x: Option<&'a Tensor<B, 2>>,
    /// The layers, as in the forward.
    pub layers: &'a [Linear<'a, B>],
    /// [`Projected::down`] of the forward.
    pub down: Option<&'a Down<B>>,
    /// Upstream gradients, `[tokens, out]` for each layer.
    pub dy: &'a [Tensor<B, 2>],
    /// Whether to compute the gradient of `x`.
    pub wants_x: bool,
    /// For each layer, the adapter gradients so far, which the new ones are added to.
    pub sums: Vec<Option<LoraGradient<B>>>,
}

/// Gradient of an adapter.
#[derive(Clone, Debug)]
pub struct LoraGradient<B: Backend> {
    /// `[rank, in]`, f32.
    pub a: Tensor<B, 2>,
    /// `[out, rank]`, f32.
    pub b: Tensor<B, 2>,
}

/// The gradients of [`linear`].
#[derive(Clone, Debug)]
pub struct LinearGradients<B: Backend> {
    /// `[tokens, in]`, compute dtype: the sum over the layers. `None` unless `wants_x`.
    pub x: Option<Tensor<B, 2>>,
    /// For each layer with an adapter, its gradient, added to the sum that came with the request.
    pub adapters: Vec<Option<LoraGradient<B>>>,
}

/// The backward of [`linear`]: see the module's page.
///
/// # Panics
/// If shapes do not fit, or an adapter comes without `x` and `down`.
pub fn linear_backward<B: LinearOps>(request: LinearBackward<'_, B>) -> LinearGradients<B> {
    let LinearBackward { x, layers, down, dy, sums, .. } = &request;
    assert!(
        !layers.is_empty() && layers.len() == dy.len() && layers.len() == sums.len(),
        "linear_backward: layers, upstream gradients and sums differ in number"
    );
    let (tokens, width) = (dy[0].dims()[0], layers[0].weight.shape()[1]);
    for (layer, dy) in layers.iter().zip(*dy) {
        layer.check(width);
        assert_eq!(
            dy.dims(),
            [tokens, layer.weight.shape()[0]],
            "linear_backward: dy does not fit the output"
        );
        assert_eq!(dy.dtype(), request.dy[0].dtype(), "linear_backward: upstream gradients differ in dtype");
    }
    let ranks: usize = layers.iter().map(Linear::rank).sum();
    if ranks > 0 {
        let fits = x.is_some_and(|x| x.dims() == [tokens, width])
            // On a GPU columns of zeros fill ranks up.
            && down.map(|down| down.t.dims()).is_some_and(|[rows, width]| rows == tokens && width >= ranks);
        assert!(fits, "linear_backward: an adapter needs x [{tokens}, {width}] and down [{tokens}, {ranks}]");
    }
    B::frozen_linear_backward(request)
}
