//! A frozen linear layer with an optional LoRA adapter, as one op with one backward.
//!
//! ```text
//! y  = x Wᵀ + bias + scaling · t Bᵀ          t = x̃ Aᵀ,  x̃ = dropout(x)
//! dx = dy W + dropout′(dt A)                  dt = scaling · dy B
//! dA = dtᵀ x̃                                  dB = scaling · dyᵀ t
//! ```
//!
//! `x` `[tokens, in]` and `y` `[tokens, out]` are in the compute dtype, sums in f32. `W` `[out, in]` is dense or
//! NF4; NF4 weights are unpacked to f32 and rounded to the compute dtype before they are multiplied, as
//! bitsandbytes does. `A` `[rank, in]` and `B` `[out, rank]` are f32 masters: the products see them rounded to the
//! compute dtype, their gradients are f32. Nothing is computed for `W`. The backward keeps `x` (shared, not
//! copied) and recomputes `t`.
//!
//! Hu et al., *LoRA* (<https://arxiv.org/abs/2106.09685>).

pub(crate) mod autodiff;
pub(crate) mod cpu;
pub mod reference;

use burn::tensor::{Tensor, backend::Backend};

use crate::backend::KernelBackend;
use crate::dropout::Dropout;
use crate::nf4::Nf4Weight;

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

/// `x Wᵀ (+ bias) (+ scaling · (dropout(x) Aᵀ) Bᵀ)`: see the module's page.
///
/// # Shapes
/// `x` `[tokens, in]`, `weight` `[out, in]`, `bias` `[out]`, result `[tokens, out]` in the dtype of `x`.
///
/// # Panics
/// If shapes do not fit, or a dtype is none of f32, bf16, f16.
pub fn linear<B: KernelBackend>(
    x: Tensor<B, 2>,
    weight: &FrozenWeight<B::Frozen>,
    bias: Option<&Tensor<B::Frozen, 1>>,
    lora: Option<&Lora<B>>,
) -> Tensor<B, 2> {
    let [out, input] = weight.shape();
    assert_eq!(x.dims()[1], input, "linear: x {:?} does not fit the weight [{out}, {input}]", x.dims());
    if let Some(bias) = bias {
        assert_eq!(bias.dims(), [out], "linear: bias does not fit the weight [{out}, {input}]");
    }
    if let Some(lora) = lora {
        let ([rank, a_input], [b_out, b_rank]) = (lora.a.dims(), lora.b.dims());
        assert!(
            a_input == input && b_out == out && b_rank == rank,
            "linear: adapter A [{rank}, {a_input}], B [{b_out}, {b_rank}] does not fit the weight [{out}, {input}]"
        );
    }
    B::frozen_linear(x, weight, bias, lora)
}

/// What the backward of [`linear`] needs.
#[derive(Clone, Debug)]
pub struct LinearBackward<B: Backend> {
    /// The layer's input; needed only where `lora` is there and `wants.a` or `wants.b` is set.
    pub x: Option<Tensor<B, 2>>,
    /// The frozen weight.
    pub weight: FrozenWeight<B>,
    /// The adapter, if any.
    pub lora: Option<Lora<B>>,
    /// Which gradients are asked for.
    pub wants: LinearWants,
}

/// Which gradients of [`linear`] are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearWants {
    /// Of the input.
    pub x: bool,
    /// Of A.
    pub a: bool,
    /// Of B.
    pub b: bool,
}

/// The gradients of [`linear`], those that were asked for.
#[derive(Clone, Debug)]
pub struct LinearGradients<B: Backend> {
    /// `[tokens, in]`, compute dtype.
    pub x: Option<Tensor<B, 2>>,
    /// `[rank, in]`, f32.
    pub a: Option<Tensor<B, 2>>,
    /// `[out, rank]`, f32.
    pub b: Option<Tensor<B, 2>>,
}
