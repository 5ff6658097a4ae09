//! The backward on tensor cores: one kernel for dq (its rows are queries) and for dk and dv (its rows are keys).
#![expect(
    clippy::collapsible_if,
    reason = "what is decided when a kernel is compiled stands apart from what it decides itself"
)]

use cubecl::prelude::*;

use super::rows::{bounded, cap_slope, rows};
use super::schedule::{Block, Side, block, meets};
use super::tensor_cores::{Tile, add_products, scores_to_strip, stage, store_sums, sync_strip, zero_sums};

/// As [`super::simt::attention_backward_kernel`].
#[cube(launch_unchecked)]
pub(super) fn attention_backward_kernel<F: Float, N: Size>(
    x1: &Array<Vector<F, N>>,
    x2: &Array<Vector<F, N>>,
    y1: &Array<Vector<F, N>>,
    y2: &Array<Vector<F, N>>,
    log_sum_exp: &Array<f32>,
    delta: &Array<f32>,
    schedule: &Array<u32>,
    d1: &mut Array<F>,
    d2: &mut Array<F>,
    blocks: u32,
    tokens: u32,
    row_heads: u32,
    column_heads: u32,
    window: u32,
    scaling: f32,
    cap: f32,
    #[comptime] is_capped: bool,
    #[comptime] side: Side,
    #[comptime] wants: [bool; 2],
    #[comptime] tile: Tile,
    #[define(F)] _dtype: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= blocks * row_heads {
        terminate!();
    }
    let block = block(schedule, cube / row_heads);
    let head = cube % row_heads;
    let width = comptime!(tile.head_dim / tile.vector);
    let fragment = comptime!(tile.fragment);
    let mut shared = SharedMemory::<Vector<F, N>>::new_aligned(
        comptime!(tile.staged(staged_rows(&tile, wants[0]))),
        32usize,
    );
    let mut scores = SharedMemory::<f32>::new_aligned(
        comptime!((tile.planes * tile.columns * tile.score_pitch()) as usize),
        32usize,
    );
    let mut weights = SharedMemory::<F>::new_aligned(
        comptime!((tile.planes * tile.columns * tile.weight_pitch()) as usize),
        32usize,
    );
    let mut factors = SharedMemory::<f32>::new(comptime!(tile.rows() as usize));
    // Of the columns' queries, where columns are queries: ln Σ exp, then δ.
    let mut statistics = SharedMemory::<f32>::new(comptime!((2 * tile.columns) as usize));

    // Where the rows lie in shared memory.
    let x2_at = comptime!(tile.rows());
    let y1_at = comptime!(if wants[0] { 2 * tile.rows() } else { tile.rows() });
    let y2_at = comptime!(y1_at + tile.columns);
    let own = rows(block.first, block.count, head, row_heads, width);
    stage::<F, N>(x1, own, &mut shared, 0u32, comptime!(tile.rows()), tile);
    if comptime!(wants[0]) {
        stage::<F, N>(x2, own, &mut shared, x2_at, comptime!(tile.rows()), tile);
    }
    let mut sums1 = Sequence::<cmma::Matrix<f32>>::new();
    let mut sums2 = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(tile.depth()) {
        if comptime!(wants[0]) {
            sums1.push(zero_sums(tile));
        }
        if comptime!(wants[1]) {
            sums2.push(zero_sums(tile));
        }
    }
    let row = UNIT_POS_Y * fragment + UNIT_POS_X % fragment;
    let mut row_log_sum_exp = 0.0f32;
    let mut row_delta = 0.0f32;
    if comptime!(matches!(side, Side::Queries)) {
        if row < block.count {
            let at = (head * tokens + block.first + row) as usize;
            row_log_sum_exp = log_sum_exp[at];
            row_delta = delta[at];
        }
    }
    let (first_head, end_head) = match comptime!(side) {
        Side::Queries => {
            let other = head / (row_heads / column_heads);
            (other, other + 1)
        }
        Side::Keys => {
            let group = column_heads / row_heads;
            (head * group, head * group + group)
        }
    };
    let tiles = (block.to - block.from).div_ceil(comptime!(tile.columns));
    for other in first_head..end_head {
        for index in 0..tiles {
            let first = block.from + index * comptime!(tile.columns);
            let count = block.to - first;
            let columns = rows(first, count, other, column_heads, width);
            sync_cube();
            stage::<F, N>(y1, columns, &mut shared, y1_at, comptime!(tile.columns), tile);
            stage::<F, N>(y2, columns, &mut shared, y2_at, comptime!(tile.columns), tile);
            if comptime!(matches!(side, Side::Keys)) {
                let unit = UNIT_POS_Y * comptime!(tile.lanes) + UNIT_POS_X;
                #[unroll]
                for i in 0..comptime!(tile.columns.div_ceil(tile.units())) {
                    let column = unit + i * comptime!(tile.units());
                    if column < comptime!(tile.columns) && column < count {
                        let at = (other * tokens + first + column) as usize;
                        statistics[column as usize] = log_sum_exp[at];
                        statistics[(comptime!(tile.columns) + column) as usize] = delta[at];
                    }
                }
            }
            sync_cube();

            scores_to_strip::<F, N>(&shared, UNIT_POS_Y * fragment, y1_at, &mut scores, tile);
            sync_strip(tile);
            // Slopes of the capped scores.
            let mut bends =
                Array::<f32>::new(comptime!(if is_capped { tile.held() as usize } else { 1usize }));
            let held = probabilities(
                &scores,
                &mut bends,
                &statistics,
                row_log_sum_exp,
                row,
                block,
                first,
                window,
                scaling,
                cap,
                is_capped,
                side,
                tile,
            );
            if comptime!(wants[1]) {
                put::<F>(&held, &mut weights, tile);
                sync_strip(tile);
                add_products::<F, N>(&sums2, &weights, &shared, y2_at, tile);
            }
            if comptime!(wants[0]) {
                sync_strip(tile);
                scores_to_strip::<F, N>(&shared, UNIT_POS_Y * fragment + x2_at, y2_at, &mut scores, tile);
                sync_strip(tile);
                let slopes = slopes(&held, &bends, &scores, &statistics, row_delta, is_capped, side, tile);
                put::<F>(&slopes, &mut weights, tile);
                sync_strip(tile);
                add_products::<F, N>(&sums1, &weights, &shared, y1_at, tile);
            }
        }
    }
    let to = rows(block.first, block.count, head, row_heads, comptime!(tile.head_dim));
    if comptime!(wants[0]) {
        if UNIT_POS_X < fragment {
            factors[row as usize] = scaling;
        }
        store_sums::<F>(&sums1, &factors, &mut scores, d1, to, tile);
    }
    if comptime!(wants[1]) {
        sync_cube();
        if UNIT_POS_X < fragment {
            factors[row as usize] = 1.0f32;
        }
        store_sums::<F>(&sums2, &factors, &mut scores, d2, to, tile);
    }
}

/// Staged rows: those of `x1`, of `x2` if dq or dk is wanted, and a tile of `y1` and `y2` each.
pub(super) const fn staged_rows(tile: &Tile, wants_first: bool) -> u32 {
    let own = if wants_first { 2 * tile.rows() } else { tile.rows() };
    own + 2 * tile.columns
}

/// The probabilities that a lane holds, of its row and every so-many-th column: 0 where nothing is seen. Under a cap the slopes
/// of the scores go to `bends`.
#[cube]
fn probabilities(
    scores: &SharedMemory<f32>,
    bends: &mut Array<f32>,
    statistics: &SharedMemory<f32>,
    row_log_sum_exp: f32,
    row: u32,
    block: Block,
    first: u32,
    window: u32,
    scaling: f32,
    cap: f32,
    #[comptime] is_capped: bool,
    #[comptime] side: Side,
    #[comptime] tile: Tile,
) -> Array<f32> {
    let fragment = comptime!(tile.fragment);
    let part = UNIT_POS_X / fragment;
    let strip = UNIT_POS_Y * comptime!(tile.columns * tile.score_pitch()) + UNIT_POS_X % fragment;
    let mut held = Array::<f32>::new(comptime!(tile.held() as usize));
    #[unroll]
    for i in 0..comptime!(tile.held()) {
        let column = part + i * comptime!(tile.sharers());
        let score = scores[(strip + column * comptime!(tile.score_pitch())) as usize] * scaling;
        let score = bounded(score, cap, is_capped);
        if comptime!(is_capped) {
            bends[i as usize] = cap_slope(score, cap);
        }
        let log_sum_exp = match comptime!(side) {
            Side::Queries => row_log_sum_exp,
            Side::Keys => statistics[column as usize],
        };
        let is_seen = row < block.count && meets(block.first + row, first + column, &block, window, side);
        held[i as usize] = select(is_seen, (score - log_sum_exp).exp(), 0.0f32);
    }
    held
}

/// p (dp − δ), with dp in the strip of scores.
#[cube]
fn slopes(
    held: &Array<f32>,
    bends: &Array<f32>,
    scores: &SharedMemory<f32>,
    statistics: &SharedMemory<f32>,
    row_delta: f32,
    #[comptime] is_capped: bool,
    #[comptime] side: Side,
    #[comptime] tile: Tile,
) -> Array<f32> {
    let fragment = comptime!(tile.fragment);
    let part = UNIT_POS_X / fragment;
    let strip = UNIT_POS_Y * comptime!(tile.columns * tile.score_pitch()) + UNIT_POS_X % fragment;
    let mut slopes = Array::<f32>::new(comptime!(tile.held() as usize));
    #[unroll]
    for i in 0..comptime!(tile.held()) {
        let column = part + i * comptime!(tile.sharers());
        let slope = scores[(strip + column * comptime!(tile.score_pitch())) as usize];
        let delta = match comptime!(side) {
            Side::Queries => row_delta,
            Side::Keys => statistics[(comptime!(tile.columns) + column) as usize],
        };
        let mut p = held[i as usize];
        if comptime!(is_capped) {
            p *= bends[i as usize];
        }
        // Past the last query δ is uninitialised shared memory, possibly NaN.
        slopes[i as usize] = select(p > 0.0f32, p * (slope - delta), 0.0f32);
    }
    slopes
}

/// Puts what a lane holds into the plane's strip of weights.
#[cube]
fn put<F: Float>(held: &Array<f32>, weights: &mut SharedMemory<F>, #[comptime] tile: Tile) {
    let fragment = comptime!(tile.fragment);
    let part = UNIT_POS_X / fragment;
    let strip = UNIT_POS_Y * comptime!(tile.columns * tile.weight_pitch()) + UNIT_POS_X % fragment;
    #[unroll]
    for i in 0..comptime!(tile.held()) {
        let column = part + i * comptime!(tile.sharers());
        let at = (strip + column * comptime!(tile.weight_pitch())) as usize;
        weights[at] = F::cast_from(held[i as usize]);
    }
}
