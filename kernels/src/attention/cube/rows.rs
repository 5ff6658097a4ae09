//! Rows of one head in a `[tokens, heads, head_dim]` buffer, δ, the product of each with its gradient, and capped scores.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_tensor::DType;
use cubecl::prelude::*;

use crate::cube::special::tanh;
use crate::cube::tensor::{array, cubes, dims, empty};

/// Some consecutive rows of a head, in elements or vectors of the buffer.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    /// Where the first begins.
    pub(super) start: u32,
    /// From one to the next.
    pub(super) pitch: u32,
    /// How many there are; behind them is nothing that may be read.
    pub(super) count: u32,
}

/// Rows `first..first + count` of `head`; `width` is that of a head.
#[cube]
pub(super) fn rows(first: u32, count: u32, head: u32, heads: u32, width: u32) -> Rows {
    Rows { start: (first * heads + head) * width, pitch: heads * width, count }
}

/// A scaled score under its cap, if there is one.
#[cube]
pub(super) fn bounded(score: f32, cap: f32, #[comptime] is_capped: bool) -> f32 {
    let mut bounded = score;
    if comptime!(is_capped) {
        bounded = cap * tanh(score / cap);
    }
    bounded
}

/// The slope of a capped score in what it was before.
#[cube]
pub(super) fn cap_slope(bounded: f32, cap: f32) -> f32 {
    let share = bounded / cap;
    1.0f32 - share * share
}

/// Units that share a row of [`delta`].
const UNITS: u32 = 16;

/// Rows of a cube.
const CUBE_ROWS: u32 = 16;

/// δ = dy · y of each head and query: f32 `[heads, tokens]`.
pub(super) fn delta<R: CubeRuntime>(y: &CubeTensor<R>, dy: &CubeTensor<R>) -> CubeTensor<R> {
    let shape = dims(y);
    let delta = empty(y, &[shape[1], shape[0]], DType::F32);
    let count = (shape[0] * shape[1]) as u32;
    // SAFETY: units stay in their row, and cubes from `count` rows on do nothing.
    unsafe {
        attention_delta_kernel::launch_unchecked::<R>(
            &y.client,
            cubes(count.div_ceil(CUBE_ROWS)),
            CubeDim::new_1d(UNITS * CUBE_ROWS),
            array(y),
            array(dy),
            array(&delta),
            shape[0] as u32,
            shape[1] as u32,
            shape[2] as u32,
            y.dtype.into(),
        );
    }
    delta
}

#[cube(launch_unchecked)]
fn attention_delta_kernel<F: Float>(
    y: &Array<F>,
    dy: &Array<F>,
    delta: &mut Array<f32>,
    tokens: u32,
    heads: u32,
    head_dim: u32,
    #[define(F)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!((UNITS * CUBE_ROWS) as usize));
    let row = CUBE_POS as u32 * CUBE_ROWS + UNIT_POS / UNITS;
    let lane = UNIT_POS % UNITS;
    let mut sum = 0.0f32;
    if row < tokens * heads {
        let mut column = lane;
        while column < head_dim {
            let at = (row * head_dim + column) as usize;
            sum += f32::cast_from(y[at]) * f32::cast_from(dy[at]);
            column += UNITS;
        }
    }
    shared[UNIT_POS as usize] = sum;
    sync_cube();
    if lane == 0 && row < tokens * heads {
        let mut total = 0.0f32;
        #[unroll]
        for other in 0..UNITS {
            total += shared[(UNIT_POS + other) as usize];
        }
        delta[((row % heads) * tokens + row / heads) as usize] = total;
    }
}
