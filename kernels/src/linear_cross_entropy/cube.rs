//! x
use super::*;
pub(crate) fn loss_and_gradient<B: KernelBackend>(
    hidden: &Tensor<B, 2>,
    head: &FrozenWeight<B>,
    supervised: &[Supervised],
    wants_gradient: bool,
) -> LossAndGradient<B> {
    unimplemented!()
}
