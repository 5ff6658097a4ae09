//! Attention by the units' own arithmetic, for every device and dtype.
//!
//! A cube of 16 × 16 units owns 64 rows and walks over tiles of 64 columns; a unit owns 4 × 4 scores and, of every 64
//! dimensions of the sums, 4 × 4 again. Operands pass through shared memory in strips of 16 dimensions (scores) or 32
//! columns (sums), as f32, so a tile takes 26 KiB whatever the head dimension.

use cubecl::prelude::*;

use super::rows::{Rows, bounded, cap_slope, rows};
use super::schedule::{Block, Side, block, meets};

/// Rows and columns of a tile.
pub(super) const TILE: u32 = 64;

/// Units along each side of a tile.
const SIDE: u32 = 16;

/// Units of a cube.
pub(super) const UNITS: u32 = SIDE * SIDE;

/// Dimensions of the operands of scores that are in shared memory at once.
const STEP: u32 = 16;

/// Columns of the operand of sums that are in shared memory at once.
const STRIP: u32 = 32;

/// From a line of shared memory to the next, in fours: one more than is used, against bank conflicts.
const PITCH: u32 = SIDE + 1;

/// Below every score.
const LOWEST: f32 = -1e30;

type Four = Vector<f32, Const<4>>;

/// [`super::forward`] for one block of queries of one head.
#[cube(launch_unchecked)]
pub(super) fn attention_kernel<F: Float>(
    q: &Array<F>,
    k: &Array<F>,
    v: &Array<F>,
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
    #[comptime] head_dim: u32,
    #[define(F)] _dtype: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= blocks * heads {
        terminate!();
    }
    let block = block(schedule, cube / heads);
    let head = cube % heads;
    let kv_head = head / (heads / kv_heads);
    let (down, across) = (UNIT_POS / SIDE, UNIT_POS % SIDE);
    let mut strip = SharedMemory::<Four>::new(comptime!((2 * STEP * PITCH) as usize));
    let mut weights = SharedMemory::<Four>::new(comptime!((TILE * PITCH) as usize));
    let chunks = comptime!(head_dim.div_ceil(TILE));
    let mut sums = zeros(comptime!(chunks * 4));
    let mut largest = Four::new(LOWEST);
    let mut total = Four::new(0.0f32);
    let own = rows(block.first, block.count, head, heads, head_dim);
    let tiles = (block.to - block.from).div_ceil(TILE);
    for tile in 0..tiles {
        let first = block.from + tile * TILE;
        let count = block.to - first;
        let mut scores = zeros(4u32);
        let keys = rows(first, count, kv_head, kv_heads, head_dim);
        add_scores::<F>(&mut scores, q, own, k, keys, &mut strip, head_dim);

        // The largest score of each row: of this unit's columns, then of all units across.
        let mut highest = Four::new(LOWEST);
        #[unroll]
        for i in 0..4u32 {
            let mut row = scores[i as usize] * Four::new(scaling);
            #[unroll]
            for j in 0..4u32 {
                let key = first + across * 4 + j;
                let is_seen = meets(block.first + down * 4 + i, key, &block, window, Side::Queries);
                let score = bounded(row[j as usize], cap, is_capped);
                row[j as usize] = select(is_seen, score, LOWEST);
                highest[i as usize] = max(highest[i as usize], row[j as usize]);
            }
            scores[i as usize] = row;
        }
        sync_cube();
        strip[(across * PITCH + down) as usize] = highest;
        sync_cube();
        let before = largest;
        #[unroll]
        for unit in 0..SIDE {
            let other = strip[(unit * PITCH + down) as usize];
            #[unroll]
            for i in 0..4usize {
                largest[i] = max(largest[i], other[i]);
            }
        }
        let factor = (before - largest).exp();
        total *= factor;
        #[unroll]
        for j in 0..4u32 {
            let mut column = Four::new(0.0f32);
            #[unroll]
            for i in 0..4usize {
                let score = scores[i][j as usize];
                column[i] = select(score > LOWEST, (score - largest[i]).exp(), 0.0f32);
            }
            weights[((across * 4 + j) * PITCH + down) as usize] = column;
            total += column;
        }
        #[unroll]
        for chunk in 0..chunks {
            #[unroll]
            for i in 0..4u32 {
                sums[(chunk * 4 + i) as usize] *= Four::new(factor[i as usize]);
            }
        }
        let values = rows(first, count, kv_head, kv_heads, head_dim);
        add_products::<F>(&mut sums, &weights, v, values, &mut strip, head_dim);
    }

    sync_cube();
    strip[(across * PITCH + down) as usize] = total;
    sync_cube();
    let mut total = Four::new(0.0f32);
    #[unroll]
    for unit in 0..SIDE {
        total += strip[(unit * PITCH + down) as usize];
    }
    store::<F>(&sums, Four::new(1.0f32) / total, y, own, head_dim);
    if across == 0 {
        #[unroll]
        for i in 0..4u32 {
            let row = down * 4 + i;
            if row < block.count {
                let at = head * tokens + block.first + row;
                log_sum_exp[at as usize] = largest[i as usize] + total[i as usize].ln();
            }
        }
    }
}

/// The backward for one block of rows of one head: with `side` queries, `x1` is q, `x2` dy, `y1` k, `y2` v, and `d1`
/// becomes dq; with keys `x1` is k, `x2` v, `y1` q, `y2` dy, `d1` becomes dk, `d2` dv, each if it is wanted.
#[cube(launch_unchecked)]
pub(super) fn attention_backward_kernel<F: Float>(
    x1: &Array<F>,
    x2: &Array<F>,
    y1: &Array<F>,
    y2: &Array<F>,
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
    #[comptime] head_dim: u32,
    #[define(F)] _dtype: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= blocks * row_heads {
        terminate!();
    }
    let block = block(schedule, cube / row_heads);
    let head = cube % row_heads;
    let (down, across) = (UNIT_POS / SIDE, UNIT_POS % SIDE);
    let mut strip = SharedMemory::<Four>::new(comptime!((2 * STEP * PITCH) as usize));
    let mut weights = SharedMemory::<Four>::new(comptime!((TILE * PITCH) as usize));
    let lines = comptime!(head_dim.div_ceil(TILE) * 4);
    let mut sums1 = zeros(lines);
    let mut sums2 = zeros(lines);
    let own = rows(block.first, block.count, head, row_heads, head_dim);
    // With keys, every query head of the group adds to the sums.
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
    let tiles = (block.to - block.from).div_ceil(TILE);
    for other in first_head..end_head {
        for tile in 0..tiles {
            let first = block.from + tile * TILE;
            let columns = rows(first, block.to - first, other, column_heads, head_dim);
            let query_head = match comptime!(side) {
                Side::Queries => head,
                Side::Keys => other,
            };
            let mut scores = zeros(4u32);
            add_scores::<F>(&mut scores, x1, own, y1, columns, &mut strip, head_dim);
            // Slopes of the capped scores.
            let mut bends = zeros(comptime!(if is_capped { 4u32 } else { 1u32 }));
            probabilities(
                &mut scores,
                &mut bends,
                log_sum_exp,
                query_head * tokens,
                block,
                first,
                window,
                scaling,
                cap,
                is_capped,
                side,
            );
            if comptime!(wants[1]) {
                transpose(&scores, &mut weights);
                add_products::<F>(&mut sums2, &weights, y2, columns, &mut strip, head_dim);
            }
            if comptime!(wants[0]) {
                let mut slopes = zeros(4u32);
                add_scores::<F>(&mut slopes, x2, own, y2, columns, &mut strip, head_dim);
                #[unroll]
                for i in 0..4u32 {
                    let probability = scores[i as usize];
                    let mut slope = slopes[i as usize];
                    #[unroll]
                    for j in 0..4u32 {
                        let row = block.first + down * 4 + i;
                        let column = first + across * 4 + j;
                        let query = query_of(row, column, side);
                        let p = probability[j as usize];
                        // Past the block and for masked pairs p is 0, and δ may lie outside its buffer.
                        let at = select(p > 0.0f32, query_head * tokens + query, 0u32);
                        slope[j as usize] = p * (slope[j as usize] - delta[at as usize]);
                    }
                    if comptime!(is_capped) {
                        slope *= bends[i as usize];
                    }
                    slopes[i as usize] = slope;
                }
                transpose(&slopes, &mut weights);
                add_products::<F>(&mut sums1, &weights, y1, columns, &mut strip, head_dim);
            }
        }
    }
    if comptime!(wants[0]) {
        store::<F>(&sums1, Four::new(scaling), d1, own, head_dim);
    }
    if comptime!(wants[1]) {
        store::<F>(&sums2, Four::new(1.0f32), d2, own, head_dim);
    }
}

/// Makes a unit's scores probabilities: 0 where nothing is seen. `log_sum_exp` of the queries' head begins at `start`. Under a
/// cap the slopes of the scores go to `bends`.
#[cube]
fn probabilities(
    scores: &mut Array<Four>,
    bends: &mut Array<Four>,
    log_sum_exp: &Array<f32>,
    start: u32,
    block: Block,
    first: u32,
    window: u32,
    scaling: f32,
    cap: f32,
    #[comptime] is_capped: bool,
    #[comptime] side: Side,
) {
    let (down, across) = (UNIT_POS / SIDE, UNIT_POS % SIDE);
    #[unroll]
    for i in 0..4u32 {
        let mut line = scores[i as usize];
        let mut bend = Four::new(1.0f32);
        #[unroll]
        for j in 0..4u32 {
            let row = down * 4 + i;
            let column = first + across * 4 + j;
            let is_seen = row < block.count && meets(block.first + row, column, &block, window, side);
            let query = query_of(block.first + row, column, side);
            let at = select(is_seen, start + query, 0u32);
            let score = bounded(line[j as usize] * scaling, cap, is_capped);
            let p = (score - log_sum_exp[at as usize]).exp();
            line[j as usize] = select(is_seen, p, 0.0f32);
            if comptime!(is_capped) {
                bend[j as usize] = cap_slope(score, cap);
            }
        }
        scores[i as usize] = line;
        if comptime!(is_capped) {
            bends[i as usize] = bend;
        }
    }
}

/// Which of the two is the query.
#[cube]
fn query_of(row: u32, column: u32, #[comptime] side: Side) -> u32 {
    match comptime!(side) {
        Side::Queries => row,
        Side::Keys => column,
    }
}

/// So many fours of zeros, in registers.
#[cube]
fn zeros(#[comptime] count: u32) -> Array<Four> {
    let mut lines = Array::<Four>::new(comptime!(count as usize));
    #[unroll]
    for i in 0..count {
        lines[i as usize] = Four::new(0.0f32);
    }
    lines
}

/// Adds a · bᵀ to the scores of this unit: line i holds its row i, 4 columns.
#[cube]
fn add_scores<F: Float>(
    scores: &mut Array<Four>,
    a: &Array<F>,
    a_rows: Rows,
    b: &Array<F>,
    b_rows: Rows,
    strip: &mut SharedMemory<Four>,
    #[comptime] head_dim: u32,
) {
    let (down, across) = (UNIT_POS / SIDE, UNIT_POS % SIDE);
    let steps = comptime!(head_dim.div_ceil(STEP));
    for step in 0..steps {
        sync_cube();
        load_transposed::<F>(a, a_rows, step * STEP, strip, 0u32, head_dim);
        load_transposed::<F>(b, b_rows, step * STEP, strip, STEP * PITCH, head_dim);
        sync_cube();
        for d in 0..STEP {
            let left = strip[(d * PITCH + down) as usize];
            let right = strip[((STEP + d) * PITCH + across) as usize];
            #[unroll]
            for i in 0..4usize {
                scores[i] += Four::new(left[i]) * right;
            }
        }
    }
}

/// Puts dimensions `from..from + STEP` of up to 64 rows into shared memory, one dimension a line. What is not there is 0.
#[cube]
fn load_transposed<F: Float>(
    x: &Array<F>,
    rows: Rows,
    from: u32,
    strip: &mut SharedMemory<Four>,
    at: u32,
    #[comptime] head_dim: u32,
) {
    let (group, lane) = (UNIT_POS / STEP, UNIT_POS % STEP);
    let column = from + lane;
    let mut four = Four::new(0.0f32);
    #[unroll]
    for i in 0..4u32 {
        let row = group * 4 + i;
        if row < rows.count && column < head_dim {
            four[i as usize] = f32::cast_from(x[(rows.start + row * rows.pitch + column) as usize]);
        }
    }
    strip[(at + lane * PITCH + group) as usize] = four;
}

/// Puts this unit's 4 × 4 values into shared memory, one column a line.
#[cube]
fn transpose(lines: &Array<Four>, weights: &mut SharedMemory<Four>) {
    let (down, across) = (UNIT_POS / SIDE, UNIT_POS % SIDE);
    #[unroll]
    for j in 0..4u32 {
        let mut column = Four::new(0.0f32);
        #[unroll]
        for i in 0..4usize {
            column[i] = lines[i][j as usize];
        }
        weights[((across * 4 + j) * PITCH + down) as usize] = column;
    }
}

/// Adds weights · b to the sums of this unit: line 4c + i holds its row i, 4 of the dimensions from 64c on.
#[cube]
fn add_products<F: Float>(
    sums: &mut Array<Four>,
    weights: &SharedMemory<Four>,
    b: &Array<F>,
    b_rows: Rows,
    strip: &mut SharedMemory<Four>,
    #[comptime] head_dim: u32,
) {
    let (down, across) = (UNIT_POS / SIDE, UNIT_POS % SIDE);
    let chunks = comptime!(head_dim.div_ceil(TILE));
    #[unroll]
    for chunk in 0..chunks {
        for part in 0..comptime!(TILE / STRIP) {
            sync_cube();
            #[unroll]
            for i in 0..comptime!(STRIP / SIDE) {
                let line = down + i * SIDE;
                let row = part * STRIP + line;
                let mut four = Four::new(0.0f32);
                #[unroll]
                for j in 0..4u32 {
                    let column = chunk * TILE + across * 4 + j;
                    if row < b_rows.count && column < head_dim {
                        let at = b_rows.start + row * b_rows.pitch + column;
                        four[j as usize] = f32::cast_from(b[at as usize]);
                    }
                }
                strip[(line * PITCH + across) as usize] = four;
            }
            sync_cube();
            for line in 0..STRIP {
                let left = weights[((part * STRIP + line) * PITCH + down) as usize];
                let right = strip[(line * PITCH + across) as usize];
                #[unroll]
                for i in 0..4u32 {
                    sums[(chunk * 4 + i) as usize] += Four::new(left[i as usize]) * right;
                }
            }
        }
    }
}

/// Writes this unit's sums, each row times its factor.
#[cube]
fn store<F: Float>(
    sums: &Array<Four>,
    factors: Four,
    y: &mut Array<F>,
    rows: Rows,
    #[comptime] head_dim: u32,
) {
    let (down, across) = (UNIT_POS / SIDE, UNIT_POS % SIDE);
    let chunks = comptime!(head_dim.div_ceil(TILE));
    #[unroll]
    for chunk in 0..chunks {
        #[unroll]
        for i in 0..4u32 {
            let row = down * 4 + i;
            let line = sums[(chunk * 4 + i) as usize];
            #[unroll]
            for j in 0..4u32 {
                let column = chunk * TILE + across * 4 + j;
                if row < rows.count && column < head_dim {
                    let value = line[j as usize] * factors[i as usize];
                    y[(rows.start + row * rows.pitch + column) as usize] = F::cast_from(value);
                }
            }
        }
    }
}
