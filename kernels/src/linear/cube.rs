//! x
use super::*;
use crate::backend::KernelBackend;
pub(crate) fn forward<B: KernelBackend>(
    x: &Tensor<B, 2>,
    layers: &[Linear<'_, B>],
    residual: Option<&Tensor<B, 2>>,
) -> Projected<B> {
    unimplemented!()
}
pub(crate) fn backward<B: KernelBackend>(request: LinearBackward<'_, B>) -> LinearGradients<B> {
    unimplemented!()
}
