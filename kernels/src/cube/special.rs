//! tanh in f32, as the CPU computes it: the functions of devices differ near 0.

use cubecl::prelude::*;

/// tanh x to a few units in the last place: Cephes' polynomial near 0, where 1 − 2 / (e²ˣ + 1) cancels.
#[cube]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let odd = 0.053_739_716f32 - square * (0.020_639_09f32 - square * 0.005_704_988_7f32);
    let near = x - x * square * (0.333_332_8f32 - square * (0.133_314_42f32 - square * odd));
    // From 20 on it is 1 in f32, and the power could overflow.
    let size = min(x.abs(), 20.0f32);
    let far = 1.0f32 - 2.0f32 / ((size + size).exp() + 1.0f32);
    let far = select(x < 0.0f32, 0.0f32 - far, far);
    select(size < 0.625f32, near, far)
}
