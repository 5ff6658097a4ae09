//! The trait a backend implements to run the ops of this crate. One method per op, and one per backward.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use crate::adamw::{AdamWConfig, Moments};
use crate::attention::{AttentionBackward, AttentionOptions};
use crate::linear::{FrozenWeight, LinearBackward, LinearGradients, Lora};
use crate::nf4::Nf4Weight;
use crate::rope::RotaryTable;

/// A backend the ops run on: a device's own, or `Autodiff` around one.
///
/// What is frozen (weights, tables, ids) lives on [`Self::Frozen`], the backend without autodiff, and so do the
/// backward methods: gradients have no gradients. Callers use the functions of the op modules, which check shapes;
/// the methods here rely on that.
pub trait KernelBackend: Backend {
    /// This backend without autodiff; a device's own backend names itself.
    type Frozen: KernelBackend<Frozen = Self::Frozen>;

    /// [`crate::linear::linear`].
    fn frozen_linear(
        x: Tensor<Self, 2>,
        weight: &FrozenWeight<Self::Frozen>,
        bias: Option<&Tensor<Self::Frozen, 1>>,
        lora: Option<&Lora<Self>>,
    ) -> Tensor<Self, 2>;

    /// [`crate::rms_norm::rms_norm`].
    fn rms_norm(x: Tensor<Self, 2>, weight: &Tensor<Self::Frozen, 1>, epsilon: f64) -> Tensor<Self, 2>;

    /// [`crate::rope::rope`].
    fn rope(
        x: Tensor<Self, 3>,
        table: &RotaryTable<Self::Frozen>,
        position_ids: &Tensor<Self::Frozen, 1, Int>,
    ) -> Tensor<Self, 3>;

    /// [`crate::swiglu::swiglu`].
    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2>;

    /// [`crate::attention::attention`].
    fn document_attention(
        q: Tensor<Self, 3>,
        k: Tensor<Self, 3>,
        v: Tensor<Self, 3>,
        options: &AttentionOptions,
    ) -> Tensor<Self, 3>;

    /// [`crate::linear_cross_entropy::linear_cross_entropy`].
    fn linear_cross_entropy(
        hidden: Tensor<Self, 2>,
        head: &FrozenWeight<Self::Frozen>,
        targets: &Tensor<Self::Frozen, 1, Int>,
    ) -> Tensor<Self, 1>;

    /// [`crate::adamw::adamw`].
    fn adamw(
        parameter: Tensor<Self, 2>,
        gradient: Tensor<Self, 2>,
        moments: Moments<Self>,
        config: &AdamWConfig,
        learning_rate: f64,
        step: u64,
    ) -> (Tensor<Self, 2>, Moments<Self>);

    /// [`crate::adamw::sum_of_squares`].
    fn sum_of_squares(tensor: &Tensor<Self, 2>) -> f64;

    /// [`Nf4Weight::dequantize`]: f32 `[out, in]`.
    fn nf4_dequantize(weight: &Nf4Weight<Self::Frozen>) -> Tensor<Self::Frozen, 2>;

    /// Gradients of [`Self::frozen_linear`] for upstream `dy` `[tokens, out]`.
    fn linear_backward(
        request: LinearBackward<Self::Frozen>,
        dy: Tensor<Self::Frozen, 2>,
    ) -> LinearGradients<Self::Frozen>;

    /// Gradient of x of [`Self::rms_norm`].
    fn rms_norm_backward(
        x: Tensor<Self::Frozen, 2>,
        weight: &Tensor<Self::Frozen, 1>,
        epsilon: f64,
        dy: Tensor<Self::Frozen, 2>,
    ) -> Tensor<Self::Frozen, 2>;

    /// Gradient of x of [`Self::rope`]: the rotation by the opposite angle.
    fn rope_backward(
        table: &RotaryTable<Self::Frozen>,
        position_ids: &Tensor<Self::Frozen, 1, Int>,
        dy: Tensor<Self::Frozen, 3>,
    ) -> Tensor<Self::Frozen, 3>;

    /// Gradients of gate and up of [`Self::swiglu`].
    fn swiglu_backward(
        gate: Tensor<Self::Frozen, 2>,
        up: Tensor<Self::Frozen, 2>,
        dy: Tensor<Self::Frozen, 2>,
    ) -> (Tensor<Self::Frozen, 2>, Tensor<Self::Frozen, 2>);

    /// [`Self::document_attention`] that also returns, in f32 `[heads, tokens]`, ln Σ exp of each query's scores.
    fn attention_with_log_sum_exp(
        q: Tensor<Self::Frozen, 3>,
        k: Tensor<Self::Frozen, 3>,
        v: Tensor<Self::Frozen, 3>,
        options: &AttentionOptions,
    ) -> (Tensor<Self::Frozen, 3>, Tensor<Self::Frozen, 2>);

    /// Gradients of q, k and v of [`Self::document_attention`].
    fn attention_backward(
        request: AttentionBackward<Self::Frozen>,
        dy: Tensor<Self::Frozen, 3>,
    ) -> [Tensor<Self::Frozen, 3>; 3];

    /// [`Self::linear_cross_entropy`] with the gradient of `hidden` for upstream 1.
    fn linear_cross_entropy_with_gradient(
        hidden: Tensor<Self::Frozen, 2>,
        head: &FrozenWeight<Self::Frozen>,
        targets: &Tensor<Self::Frozen, 1, Int>,
    ) -> (Tensor<Self::Frozen, 1>, Tensor<Self::Frozen, 2>);
}
