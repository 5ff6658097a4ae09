//! What the sweeps read: normalised keys and queries, and gates.

use cubecl::prelude::*;

use super::sizes::{Sizes, UNITS};
use crate::cube::reduce::cube_sum;
use crate::delta_rule::sizes::EPSILON;

/// Numbers of a row of `mixed`.
pub(super) fn width(sizes: Sizes) -> u32 {
    2 * sizes.keys * sizes.key_dim + sizes.values * sizes.value_dim
}

/// One cube for each token and key head.
#[cube(launch_unchecked)]
pub(super) fn unit_kernel<F: Float>(
    mixed: &Array<F>,
    unit: &mut Array<f32>,
    rows: u32,
    #[comptime] sizes: Sizes,
    #[define(F)] _dtype: StorageType,
) {
    let row = CUBE_POS as u32;
    if row >= rows {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(32usize);
    let (token, head) = (row / sizes.keys, row % sizes.keys);
    let query = token * comptime!(width(sizes)) + head * sizes.key_dim;
    let key = query + comptime!(sizes.keys * sizes.key_dim);
    let out = row * comptime!(2 * sizes.key_dim);
    let scale = comptime!(1.0 / (sizes.key_dim as f32).sqrt());
    let r = inverse_norm::<F>(mixed, key, &mut shared, sizes.key_dim);
    copy_scaled::<F>(mixed, key, r, unit, out, sizes.key_dim);
    let r = inverse_norm::<F>(mixed, query, &mut shared, sizes.key_dim) * scale;
    copy_scaled::<F>(mixed, query, r, unit, out + sizes.key_dim, sizes.key_dim);
}

/// 1 / √(Σ x² + ε) of the numbers from `start` on, in every unit.
#[cube]
pub(super) fn inverse_norm<F: Float>(
    x: &Array<F>,
    start: u32,
    shared: &mut SharedMemory<f32>,
    #[comptime] dim: u32,
) -> f32 {
    let mut squares = 0.0f32;
    let mut i = UNIT_POS;
    while i < dim {
        let value = f32::cast_from(x[(start + i) as usize]);
        squares += value * value;
        i += UNITS;
    }
    1.0f32 / (cube_sum(squares, shared, UNITS) + EPSILON).sqrt()
}

#[cube]
fn copy_scaled<F: Float>(
    x: &Array<F>,
    start: u32,
    factor: f32,
    out: &mut Array<f32>,
    place: u32,
    #[comptime] dim: u32,
) {
    let mut i = UNIT_POS;
    while i < dim {
        out[(place + i) as usize] = f32::cast_from(x[(start + i) as usize]) * factor;
        i += UNITS;
    }
}

/// One unit for each token and value head.
#[cube(launch_unchecked)]
pub(super) fn gates_kernel<F: Float>(
    decay: &Array<F>,
    write: &Array<F>,
    log_rate: &Array<f32>,
    bias: &Array<f32>,
    gates: &mut Array<f32>,
    count: u32,
    #[comptime] sizes: Sizes,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let head = ABSOLUTE_POS as u32 % sizes.values;
    let x = f32::cast_from(decay[ABSOLUTE_POS]) + bias[head as usize];
    // ln(1 + exp x), without overflow.
    let softplus = max(x, 0.0f32) + (1.0f32 + (-x.abs()).exp()).ln();
    gates[ABSOLUTE_POS * 2] = (-(log_rate[head as usize].exp() * softplus)).exp();
    let write = f32::cast_from(write[ABSOLUTE_POS]);
    gates[ABSOLUTE_POS * 2 + 1] = 1.0f32 / (1.0f32 + (-write).exp());
}
