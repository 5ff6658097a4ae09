//! What a mixture makes of the residual, where it is given that itself: a norm for its experts, and another one, times a
//! number, for its router.

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::rms_norm::{rms_norm, rms_norm_backward};

use super::layer::Call;
use crate::model::parts::{ConstantSpec, MixtureInputs, MixtureSpec};

/// The inputs of experts and router; none where both are given the mixture's own.
pub(super) struct Given<B: KernelBackend>(Option<[Tensor<B, 2>; 2]>);

impl<B: KernelBackend> Given<B> {
    /// Of a mixture's input.
    pub(super) fn of(spec: &MixtureSpec, x: &Tensor<B, 2>, call: &Call<'_, B>) -> Self {
        Self(spec.inputs.as_ref().map(|MixtureInputs { experts, router: (norm, weight), factor }| {
            let read = rms_norm(x, &weight_of(weight, call), *norm) * *factor;
            [call.norm(experts).forward(x, None), read]
        }))
    }

    /// What experts are given.
    pub(super) fn experts<'a>(&'a self, x: &'a Tensor<B, 2>) -> &'a Tensor<B, 2> {
        self.0.as_ref().map_or(x, |[experts, _]| experts)
    }

    /// What the router is given.
    pub(super) fn router<'a>(&'a self, x: &'a Tensor<B, 2>) -> &'a Tensor<B, 2> {
        self.0.as_ref().map_or(x, |[_, router]| router)
    }
}

/// The gradient of a mixture's input for those of what its experts and its router are given.
pub(super) fn backward<B: KernelBackend>(
    spec: &MixtureSpec,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    dexperts: Tensor<B, 2>,
    drouter: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let Some(MixtureInputs { experts, router: (norm, weight), factor }) = &spec.inputs else {
        return dexperts + drouter;
    };
    let dx = call.norm(experts).backward(x, dexperts, None);
    rms_norm_backward(x, &weight_of(weight, call), *norm, drouter * *factor, Some(&dx))
}

fn weight_of<B: KernelBackend>(weight: &ConstantSpec, call: &Call<'_, B>) -> Tensor<B, 1> {
    let weight = call.constant(weight).clone();
    let width = weight.shape().num_elements();
    weight.reshape([width])
}
