//! The forward on tensor cores.
//!
//! Weights are relative to a reference that trails the row's largest score: only when a score exceeds it by [`SLACK`]
//! does the row take a new one, and only then do its sums, which lie in fragments, pass through shared memory to be
//! scaled. Beyond the first tiles that is rare.
#![expect(
    clippy::collapsible_if,
    reason = "what is decided when a kernel is compiled stands apart from what it decides itself"
)]

use cubecl::prelude::*;

use super::rows::{bounded, rows};
use super::schedule::{Block, Side, block, meets};
use super::tensor_cores::{
    Tile, add_products, load_staged, scores_to_strip, stage, store_scores, store_sums, sync_strip, zero_sums,
};

/// How far a score may lie above its row's reference: weights reach e⁵ ≈ 148, well within f16.
const SLACK: f32 = 5.0;

/// Below every score.
const LOWEST: f32 = -1e30;

/// [`super::forward`] for one block of queries of one head.
#[cube(launch_unchecked)]
pub(super) fn attention_kernel<F: Float, N: Size>(
    q: &Array<Vector<F, N>>,
    k: &Array<Vector<F, N>>,
    v: &Array<Vector<F, N>>,
    schedule: &Array<u32>,
    y: &mut Array<F>,
    log_sum_exp: &mut Array<f32>,
    blocks: u32,
    tokens: u32,
    heads: u32,
    kv_heads: u32,
    window: u32,
    scaling: f32,
    cap: f32,
    #[comptime] is_capped: bool,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= blocks * heads {
        terminate!();
    }
    let block = block(schedule, cube / heads);
    let head = cube % heads;
    let kv_head = head / (heads / kv_heads);
    let width = comptime!(tile.head_dim / tile.vector);
    let fragment = comptime!(tile.fragment);
    let mut shared =
        SharedMemory::<Vector<F, N>>::new_aligned(comptime!(tile.staged(tile.forward_rows())), 32usize);
    let mut scores = SharedMemory::<f32>::new_aligned(
        comptime!((tile.planes * tile.columns * tile.score_pitch()) as usize),
        32usize,
    );
    let mut weights = SharedMemory::<F>::new_aligned(
        comptime!((tile.planes * tile.columns * tile.weight_pitch()) as usize),
        32usize,
    );
    let mut factors = SharedMemory::<f32>::new(comptime!(tile.rows() as usize));
    let mut flags = SharedMemory::<u32>::new(2usize);

    let own = rows(block.first, block.count, head, heads, width);
    stage::<F, N>(q, own, &mut shared, 0u32, comptime!(tile.rows()), tile);
    sync_cube();
    let mut queries = Sequence::<cmma::Matrix<F>>::new();
    if comptime!(tile.holds_queries()) {
        #[unroll]
        for d in 0..comptime!(tile.depth()) {
            queries.push(load_staged::<F, N>(
                &shared,
                UNIT_POS_Y * fragment,
                comptime!(d * tile.fragment),
                cmma::MatrixIdent::A,
                cmma::MatrixLayout::RowMajor,
                tile,
            ));
        }
    }
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(tile.depth()) {
        sums.push(zero_sums(tile));
    }
    // Of the lane's row; the total only of the lane's columns.
    let mut reference = LOWEST.runtime();
    let mut total = 0.0f32;
    let keys_at = comptime!(if tile.holds_queries() { 0u32 } else { tile.rows() });
    let values_at = comptime!(keys_at + tile.columns);

    let tiles = (block.to - block.from).div_ceil(comptime!(tile.columns));
    for index in 0..tiles {
        let first = block.from + index * comptime!(tile.columns);
        let columns = rows(first, block.to - first, kv_head, kv_heads, width);
        sync_cube();
        stage::<F, N>(k, columns, &mut shared, keys_at, comptime!(tile.columns), tile);
        stage::<F, N>(v, columns, &mut shared, values_at, comptime!(tile.columns), tile);
        if UNIT_POS_X == 0 && UNIT_POS_Y == 0 {
            flags[((index + 1) % 2) as usize] = 0u32;
            if index == 0 {
                flags[0] = 0u32;
            }
        }
        sync_cube();
        if comptime!(tile.holds_queries()) {
            held_scores_to_strip::<F, N>(&queries, &shared, keys_at, &mut scores, tile);
        } else {
            scores_to_strip::<F, N>(&shared, UNIT_POS_Y * fragment, keys_at, &mut scores, tile);
        }
        sync_strip(tile);

        let (new, sum, is_far) =
            weigh::<F>(&scores, &mut weights, reference, block, first, window, scaling, cap, is_capped, tile);
        let factor = (reference - new).exp();
        total = total * factor + sum;
        reference = new;
        if comptime!(!tile.syncs_planes) {
            if is_far {
                flags[(index % 2) as usize] = 1u32;
            }
        }
        sync_strip(tile);
        let must_scale = if comptime!(tile.syncs_planes) {
            plane_any(is_far)
        } else {
            flags[(index % 2) as usize] == 1u32
        };
        if must_scale {
            scale(&sums, &mut scores, factor, tile);
        }
        add_products::<F, N>(&sums, &weights, &shared, values_at, tile);
    }

    let total = over_sharers_sum(total, tile);
    let row = UNIT_POS_Y * fragment + UNIT_POS_X % fragment;
    if UNIT_POS_X < fragment {
        factors[row as usize] = 1.0f32 / total;
        if row < block.count {
            log_sum_exp[(head * tokens + block.first + row) as usize] = reference + total.ln();
        }
    }
    let to = rows(block.first, block.count, head, heads, comptime!(tile.head_dim));
    store_sums::<F>(&sums, &factors, &mut scores, y, to, tile);
}

/// [`scores_to_strip`] with the rows in registers.
#[cube]
fn held_scores_to_strip<F: Float, N: Size>(
    queries: &Sequence<cmma::Matrix<F>>,
    shared: &SharedMemory<Vector<F, N>>,
    keys_at: u32,
    scores: &mut SharedMemory<f32>,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for c in 0..comptime!(tile.columns / tile.fragment) {
        let sum = zero_sums(tile);
        #[unroll]
        for d in 0..comptime!(tile.depth()) {
            let b = load_staged::<F, N>(
                shared,
                keys_at + c * comptime!(tile.fragment),
                comptime!(d * tile.fragment),
                cmma::MatrixIdent::B,
                cmma::MatrixLayout::ColMajor,
                tile,
            );
            cmma::execute(queries.index(comptime!(d as usize)), &b, &sum, &sum);
        }
        store_scores(&sum, scores, comptime!(c * tile.fragment), tile);
    }
}

/// Makes weights of a plane's scores. Returns the row's reference from here on, the sum of the lane's weights, and
/// whether sums made with the old reference must be scaled.
#[cube]
fn weigh<F: Float>(
    scores: &SharedMemory<f32>,
    weights: &mut SharedMemory<F>,
    reference: f32,
    block: Block,
    first: u32,
    window: u32,
    scaling: f32,
    cap: f32,
    #[comptime] is_capped: bool,
    #[comptime] tile: Tile,
) -> (f32, f32, bool) {
    let fragment = comptime!(tile.fragment);
    let (row, part) = (UNIT_POS_X % fragment, UNIT_POS_X / fragment);
    let query = block.first + UNIT_POS_Y * fragment + row;
    let strip = UNIT_POS_Y * comptime!(tile.columns * tile.score_pitch());
    let mut held = Array::<f32>::new(comptime!(tile.held() as usize));
    let mut largest = LOWEST.runtime();
    #[unroll]
    for i in 0..comptime!(tile.held()) {
        let column = part + i * comptime!(tile.sharers());
        let score = scores[(strip + column * comptime!(tile.score_pitch()) + row) as usize] * scaling;
        let score = bounded(score, cap, is_capped);
        let is_seen = meets(query, first + column, &block, window, Side::Queries);
        held[i as usize] = select(is_seen, score, LOWEST);
        largest = max(largest, held[i as usize]);
    }
    let largest = over_sharers_max(largest, tile);
    let is_new = largest > reference + SLACK;
    let new = select(is_new, largest, reference);
    let strip = UNIT_POS_Y * comptime!(tile.columns * tile.weight_pitch());
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..comptime!(tile.held()) {
        let column = part + i * comptime!(tile.sharers());
        let score = held[i as usize];
        let weight = select(score > LOWEST, (score - new).exp(), 0.0f32);
        sum += weight;
        weights[(strip + column * comptime!(tile.weight_pitch()) + row) as usize] = F::cast_from(weight);
    }
    (new, sum, is_new && reference > LOWEST)
}

/// Multiplies each row of this plane's sums by its lanes' factor; the strip of scores is used up.
#[cube]
fn scale(
    sums: &Sequence<cmma::Matrix<f32>>,
    scores: &mut SharedMemory<f32>,
    factor: f32,
    #[comptime] tile: Tile,
) {
    let fragment = comptime!(tile.fragment);
    let pitch = comptime!(tile.score_pitch());
    let (row, part) = (UNIT_POS_X % fragment, UNIT_POS_X / fragment);
    let strip = UNIT_POS_Y * comptime!(tile.columns * pitch);
    #[unroll]
    for d in 0..comptime!(tile.depth()) {
        let sum = sums.index(comptime!(d as usize));
        store_scores(sum, scores, 0u32, tile);
        sync_strip(tile);
        #[unroll]
        for i in 0..comptime!(tile.fragment / tile.sharers()) {
            let at = (strip + (part + i * comptime!(tile.sharers())) * pitch + row) as usize;
            scores[at] *= factor;
        }
        sync_strip(tile);
        let start = strip as usize;
        let length = comptime!((tile.fragment * pitch) as usize);
        cmma::load_with_layout(
            sum,
            &scores.slice(start, start + length),
            pitch,
            cmma::MatrixLayout::ColMajor,
        );
        sync_strip(tile);
    }
}

/// The largest over the lanes that share a row.
#[cube]
fn over_sharers_max(value: f32, #[comptime] tile: Tile) -> f32 {
    let mut value = value;
    #[unroll]
    for step in 0..comptime!(tile.sharers().ilog2()) {
        value = max(value, plane_shuffle_xor(value, comptime!(tile.fragment << step)));
    }
    value
}

/// The sum over the lanes that share a row.
#[cube]
fn over_sharers_sum(value: f32, #[comptime] tile: Tile) -> f32 {
    let mut value = value;
    #[unroll]
    for step in 0..comptime!(tile.sharers().ilog2()) {
        value += plane_shuffle_xor(value, comptime!(tile.fragment << step));
    }
    value
}
