//! From the sweeps' results to gradients: of gates, and of queries and keys before they were normalised.

use cubecl::prelude::*;

use super::inputs::{inverse_norm, width};
use super::sizes::{SPAN, Sizes, UNITS};
use crate::cube::reduce::cube_sum;

/// One cube for each token and value head: what the running sum of ln decay moves, and the gradient of `write`.
#[cube(launch_unchecked)]
pub(super) fn gates_kernel<F: Float>(
    unit: &Array<f32>,
    gates: &Array<f32>,
    delta: &Array<f32>,
    ddelta: &Array<f32>,
    dq: &Array<f32>,
    row: &Array<f32>,
    col: &Array<f32>,
    slopes: &mut Array<f32>,
    dwrite: &mut Array<F>,
    count: u32,
    #[comptime] sizes: Sizes,
    #[define(F)] _dtype: StorageType,
) {
    let at = CUBE_POS as u32;
    if at >= count {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(32usize);
    let group = comptime!(sizes.values / sizes.keys);
    let (token, head) = (at / sizes.values, at % sizes.values);
    let key = (token * sizes.keys + head / group) * comptime!(2 * sizes.key_dim);
    let mut sum = 0.0f32;
    let mut i = UNIT_POS;
    while i < sizes.key_dim {
        let own = (at * sizes.key_dim + i) as usize;
        sum += unit[(key + sizes.key_dim + i) as usize] * dq[own];
        sum += unit[(key + i) as usize] * (row[own] - col[own]);
        i += UNITS;
    }
    let slope = cube_sum(sum, &mut shared, UNITS);
    let mut sum = 0.0f32;
    let mut j = UNIT_POS;
    while j < sizes.value_dim {
        let own = (at * sizes.value_dim + j) as usize;
        sum += delta[own] * ddelta[own];
        j += UNITS;
    }
    let strength = cube_sum(sum, &mut shared, UNITS);
    if UNIT_POS == 0 {
        slopes[at as usize] = slope;
        dwrite[at as usize] = F::cast_from(strength * (1.0f32 - gates[(2 * at + 1) as usize]));
    }
}

/// One cube for each document and value head: the gradient of `decay`, from sums over the tokens of a chunk from each one
/// on, and what the tokens behind the chunk add.
#[cube(launch_unchecked)]
pub(super) fn decay_kernel<F: Float>(
    slopes: &Array<f32>,
    anchors: &Array<f32>,
    decay: &Array<F>,
    log_rate: &Array<f32>,
    bias: &Array<f32>,
    offsets: &Array<u32>,
    ddecay: &mut Array<F>,
    count: u32,
    #[comptime] sizes: Sizes,
    #[define(F)] _dtype: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= count {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(SPAN as usize));
    let (document, head) = (cube / sizes.values, cube % sizes.values);
    let first = offsets[document as usize];
    let end = offsets[(document + 1) as usize];
    let rate = log_rate[head as usize].exp();
    let chunks = (end - first).div_ceil(SPAN);
    for chunk in 0..chunks {
        let start = first + chunk * SPAN;
        let stop = min(start + SPAN, end);
        let mut behind = 0.0f32;
        if stop < end {
            let place = (stop / SPAN * sizes.values + head) * sizes.key_dim;
            let mut i = UNIT_POS;
            while i < sizes.key_dim {
                behind += anchors[(place + i) as usize];
                i += SPAN;
            }
        }
        let behind = cube_sum(behind, &mut shared, SPAN);
        // Unit u holds the token u places before the chunk's last.
        let is_real = UNIT_POS < stop - start;
        let at = (stop - 1 - min(UNIT_POS, stop - start - 1)) * sizes.values + head;
        let mut slope = 0.0f32;
        if is_real {
            slope = slopes[at as usize];
        }
        sync_cube();
        shared[UNIT_POS as usize] = slope;
        sync_cube();
        if UNIT_POS == 0 {
            let mut sum = behind;
            for unit in 0..SPAN {
                sum += shared[unit as usize];
                shared[unit as usize] = sum;
            }
        }
        sync_cube();
        if is_real {
            let x = f32::cast_from(decay[at as usize]) + bias[head as usize];
            let factor = rate / (1.0f32 + (-x).exp());
            ddecay[at as usize] = F::cast_from(-(factor * shared[UNIT_POS as usize]));
        }
    }
}

/// One cube for each token and key head.
#[cube(launch_unchecked)]
pub(super) fn queries_and_keys_kernel<F: Float>(
    mixed: &Array<F>,
    dq: &Array<f32>,
    row: &Array<f32>,
    col: &Array<f32>,
    dmixed: &mut Array<F>,
    rows: u32,
    #[comptime] sizes: Sizes,
    #[define(F)] _dtype: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= rows {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(32usize);
    let group = comptime!(sizes.values / sizes.keys);
    let (token, head) = (cube / sizes.keys, cube % sizes.keys);
    let query = token * comptime!(width(sizes)) + head * sizes.key_dim;
    let key = query + comptime!(sizes.keys * sizes.key_dim);
    // The first value head of the group.
    let first = (token * sizes.values + head * group) * sizes.key_dim;
    let mut sums = SharedMemory::<f32>::new(comptime!((2 * sizes.key_dim) as usize));
    let mut i = UNIT_POS;
    while i < sizes.key_dim {
        let mut query_sum = 0.0f32;
        let mut key_sum = 0.0f32;
        for other in 0..group {
            let at = (first + other * sizes.key_dim + i) as usize;
            query_sum += dq[at];
            key_sum += row[at] + col[at];
        }
        sums[i as usize] = query_sum;
        sums[(sizes.key_dim + i) as usize] = key_sum;
        i += UNITS;
    }
    let scale = comptime!(1.0 / (sizes.key_dim as f32).sqrt());
    normalise_backward::<F>(mixed, query, scale, &sums, 0u32, &mut shared, dmixed, sizes.key_dim);
    normalise_backward::<F>(mixed, key, 1.0f32, &sums, sizes.key_dim, &mut shared, dmixed, sizes.key_dim);
}

/// The gradient of factor · x / √(Σ x² + ε) for the upstream gradient at `place` in `sums`; a unit reads what it wrote.
#[cube]
fn normalise_backward<F: Float>(
    x: &Array<F>,
    start: u32,
    factor: f32,
    sums: &SharedMemory<f32>,
    place: u32,
    shared: &mut SharedMemory<f32>,
    dx: &mut Array<F>,
    #[comptime] dim: u32,
) {
    let r = inverse_norm::<F>(x, start, shared, dim);
    let mut along = 0.0f32;
    let mut i = UNIT_POS;
    while i < dim {
        along += f32::cast_from(x[(start + i) as usize]) * r * sums[(place + i) as usize];
        i += UNITS;
    }
    let along = cube_sum(along, shared, UNITS);
    let mut i = UNIT_POS;
    while i < dim {
        let unit = f32::cast_from(x[(start + i) as usize]) * r;
        dx[(start + i) as usize] = F::cast_from(factor * r * (sums[(place + i) as usize] - unit * along));
        i += UNITS;
    }
}
