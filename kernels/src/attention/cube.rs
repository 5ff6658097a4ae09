//! Attention on a GPU.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use super::AttentionOptions;

/// What the forward left, and the upstream gradient.
pub(crate) struct Saved<R: CubeRuntime> {
    pub(crate) q: CubeTensor<R>,
    pub(crate) k: CubeTensor<R>,
    pub(crate) v: CubeTensor<R>,
    pub(crate) output: CubeTensor<R>,
    pub(crate) log_sum_exp: CubeTensor<R>,
    pub(crate) dy: CubeTensor<R>,
}

pub(crate) fn forward<R: CubeRuntime>(
    q: &CubeTensor<R>,
    k: &CubeTensor<R>,
    v: &CubeTensor<R>,
    options: &AttentionOptions,
) -> (CubeTensor<R>, CubeTensor<R>) {
    unimplemented!()
}

pub(crate) fn backward<R: CubeRuntime>(saved: &Saved<R>, options: &AttentionOptions) -> [CubeTensor<R>; 3] {
    unimplemented!()
}
