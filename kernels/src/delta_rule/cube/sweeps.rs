//! The ways through a document: a cube for some columns or rows of one head's state.
#![expect(
    clippy::collapsible_if,
    clippy::manual_is_multiple_of,
    reason = "what is decided when a kernel is compiled stands apart from what it decides itself; kernels have no such method"
)]

use cubecl::prelude::*;

use super::inputs::width;
use super::sizes::{SPAN, Sizes, UNITS};

/// Whose state a unit holds a part of, and which.
#[derive(CubeType)]
struct Own {
    first: u32,
    end: u32,
    head: u32,
    /// The unit's column or row.
    index: u32,
    /// Whether there is such a one.
    is_real: bool,
}

/// The part of a unit, of `dim` columns or rows.
#[cube]
fn own(offsets: &Array<u32>, #[comptime] dim: u32, #[comptime] sizes: Sizes) -> Own {
    let blocks = comptime!(dim.div_ceil(UNITS));
    let cube = CUBE_POS as u32;
    let block = cube % blocks;
    let head = (cube / blocks) % sizes.values;
    let document = cube / (blocks * sizes.values);
    let index = block * UNITS + UNIT_POS;
    Own {
        first: offsets[document as usize],
        end: offsets[(document + 1) as usize],
        head,
        index,
        is_real: index < dim,
    }
}

#[cube]
fn zeros(#[comptime] count: u32) -> Array<f32> {
    let mut numbers = Array::<f32>::new(comptime!(count as usize));
    #[unroll]
    for i in 0..count {
        numbers[i as usize] = 0.0f32;
    }
    numbers
}

/// Copies `count` numbers to shared memory, all units together.
#[cube]
fn share<F: Float>(
    from: &Array<F>,
    start: u32,
    shared: &mut SharedMemory<f32>,
    place: u32,
    #[comptime] count: u32,
) {
    let mut i = UNIT_POS;
    while i < count {
        shared[(place + i) as usize] = f32::cast_from(from[(start + i) as usize]);
        i += UNITS;
    }
}

/// Whether a chunk begins with this token, and not the document.
#[cube]
fn begins_chunk(token: u32, own: &Own) -> bool {
    token > own.first && (token - own.first) % SPAN == 0
}

/// Where the row of a unit begins in what is left of states at the beginning of chunks.
#[cube]
fn chunk_row(token: u32, own: &Own, #[comptime] sizes: Sizes) -> u32 {
    (token / SPAN * sizes.values + own.head) * sizes.key_dim + own.index
}

/// Where a token's unit key begins; its query follows.
#[cube]
fn unit_row(token: u32, head: u32, #[comptime] sizes: Sizes) -> u32 {
    let group = comptime!(sizes.values / sizes.keys);
    (token * sizes.keys + head / group) * comptime!(2 * sizes.key_dim)
}

/// A column of S: the outputs, Δ and the last state, as wanted.
#[cube(launch_unchecked)]
pub(super) fn forward_kernel<F: Float>(
    mixed: &Array<F>,
    unit: &Array<f32>,
    gates: &Array<f32>,
    offsets: &Array<u32>,
    state: &mut Array<f32>,
    y: &mut Array<F>,
    delta: &mut Array<f32>,
    documents: u32,
    #[comptime] sizes: Sizes,
    #[comptime] has_state: bool,
    #[comptime] keeps_delta: bool,
    #[define(F)] _dtype: StorageType,
) {
    let dim = comptime!(sizes.key_dim);
    if CUBE_POS as u32 >= documents * comptime!(sizes.values * sizes.value_dim.div_ceil(UNITS)) {
        terminate!();
    }
    let own = own(offsets, sizes.value_dim, sizes);
    let mut shared = SharedMemory::<f32>::new(comptime!((2 * sizes.key_dim) as usize));
    let mut s = zeros(dim);
    let place = own.head * comptime!(sizes.key_dim * sizes.value_dim) + own.index;
    if comptime!(has_state) {
        if own.is_real {
            #[unroll]
            for i in 0..dim {
                s[i as usize] = state[(place + i * sizes.value_dim) as usize];
            }
        }
    }
    for token in own.first..own.end {
        sync_cube();
        share::<f32>(unit, unit_row(token, own.head, sizes), &mut shared, 0u32, comptime!(2 * sizes.key_dim));
        sync_cube();
        let gate = (token * sizes.values + own.head) * 2;
        let (kept, beta) = (gates[gate as usize], gates[(gate + 1) as usize]);
        let mut known = 0.0f32;
        #[unroll]
        for i in 0..dim {
            s[i as usize] *= kept;
            known += s[i as usize] * shared[i as usize];
        }
        let mut v = 0.0f32;
        if own.is_real {
            let start = token * comptime!(width(sizes)) + comptime!(2 * sizes.keys * sizes.key_dim);
            v = f32::cast_from(mixed[(start + own.head * sizes.value_dim + own.index) as usize]);
        }
        let d = beta * (v - known);
        let mut output = 0.0f32;
        #[unroll]
        for i in 0..dim {
            s[i as usize] += shared[i as usize] * d;
            output += s[i as usize] * shared[comptime!((sizes.key_dim + i) as usize)];
        }
        if own.is_real {
            let at = (token * sizes.values + own.head) * sizes.value_dim + own.index;
            y[at as usize] = F::cast_from(output);
            if comptime!(keeps_delta) {
                delta[at as usize] = d;
            }
        }
    }
    if comptime!(has_state) {
        if own.is_real {
            #[unroll]
            for i in 0..dim {
                state[(place + i * sizes.value_dim) as usize] = s[i as usize];
            }
        }
    }
}

/// A column of E, from the last token to the first: dΔ′ and dv.
#[cube(launch_unchecked)]
pub(super) fn back_by_columns_kernel<F: Float>(
    unit: &Array<f32>,
    gates: &Array<f32>,
    offsets: &Array<u32>,
    dy: &Array<F>,
    ddelta: &mut Array<f32>,
    dmixed: &mut Array<F>,
    documents: u32,
    #[comptime] sizes: Sizes,
    #[define(F)] _dtype: StorageType,
) {
    let dim = comptime!(sizes.key_dim);
    if CUBE_POS as u32 >= documents * comptime!(sizes.values * sizes.value_dim.div_ceil(UNITS)) {
        terminate!();
    }
    let own = own(offsets, sizes.value_dim, sizes);
    let mut shared = SharedMemory::<f32>::new(comptime!((2 * sizes.key_dim) as usize));
    let mut e = zeros(dim);
    for back in 0..own.end - own.first {
        let token = own.end - 1 - back;
        sync_cube();
        share::<f32>(unit, unit_row(token, own.head, sizes), &mut shared, 0u32, comptime!(2 * sizes.key_dim));
        sync_cube();
        let gate = (token * sizes.values + own.head) * 2;
        let (kept, beta) = (gates[gate as usize], gates[(gate + 1) as usize]);
        let at = (token * sizes.values + own.head) * sizes.value_dim + own.index;
        let mut upstream = 0.0f32;
        if own.is_real {
            upstream = f32::cast_from(dy[at as usize]);
        }
        let mut d = 0.0f32;
        #[unroll]
        for i in 0..dim {
            e[i as usize] += shared[comptime!((sizes.key_dim + i) as usize)] * upstream;
            d += shared[i as usize] * e[i as usize];
        }
        let written = beta * d;
        #[unroll]
        for i in 0..dim {
            e[i as usize] = kept * (e[i as usize] - shared[i as usize] * written);
        }
        if own.is_real {
            ddelta[at as usize] = d;
            let start = token * comptime!(width(sizes)) + comptime!(2 * sizes.keys * sizes.key_dim);
            dmixed[(start + own.head * sizes.value_dim + own.index) as usize] = F::cast_from(written);
        }
    }
}

/// A row of S: dq̂ and `row`, and the row itself before each chunk.
#[cube(launch_unchecked)]
pub(super) fn forward_by_rows_kernel<F: Float>(
    unit: &Array<f32>,
    gates: &Array<f32>,
    offsets: &Array<u32>,
    dy: &Array<F>,
    delta: &Array<f32>,
    ddelta: &Array<f32>,
    dq: &mut Array<f32>,
    row: &mut Array<f32>,
    states: &mut Array<f32>,
    documents: u32,
    #[comptime] sizes: Sizes,
    #[define(F)] _dtype: StorageType,
) {
    let dim = comptime!(sizes.value_dim);
    if CUBE_POS as u32 >= documents * comptime!(sizes.values * sizes.key_dim.div_ceil(UNITS)) {
        terminate!();
    }
    let own = own(offsets, sizes.key_dim, sizes);
    let mut shared = SharedMemory::<f32>::new(comptime!((3 * sizes.value_dim) as usize));
    let mut s = zeros(dim);
    for token in own.first..own.end {
        let head = token * sizes.values + own.head;
        sync_cube();
        share::<F>(dy, head * dim, &mut shared, 0u32, dim);
        share::<f32>(delta, head * dim, &mut shared, dim, dim);
        share::<f32>(ddelta, head * dim, &mut shared, comptime!(2 * dim), dim);
        sync_cube();
        let (kept, beta) = (gates[(head * 2) as usize], gates[(head * 2 + 1) as usize]);
        let mut key = 0.0f32;
        if own.is_real {
            key = unit[(unit_row(token, own.head, sizes) + own.index) as usize];
        }
        if begins_chunk(token, &own) && own.is_real {
            let place = chunk_row(token, &own, sizes) * dim;
            #[unroll]
            for j in 0..dim {
                states[(place + j) as usize] = s[j as usize];
            }
        }
        let mut read = 0.0f32;
        let mut missed = 0.0f32;
        #[unroll]
        for j in 0..dim {
            s[j as usize] *= kept;
            missed += s[j as usize] * shared[comptime!((2 * dim + j) as usize)];
            s[j as usize] += key * shared[comptime!((dim + j) as usize)];
            read += s[j as usize] * shared[j as usize];
        }
        if own.is_real {
            let at = head * sizes.key_dim + own.index;
            dq[at as usize] = read;
            row[at as usize] = -(beta * missed);
        }
    }
}

/// A row of E, from the last token to the first: `col`, and its product with the row of S before each chunk.
#[cube(launch_unchecked)]
pub(super) fn back_by_rows_kernel<F: Float>(
    unit: &Array<f32>,
    gates: &Array<f32>,
    offsets: &Array<u32>,
    dy: &Array<F>,
    delta: &Array<f32>,
    ddelta: &Array<f32>,
    states: &Array<f32>,
    col: &mut Array<f32>,
    anchors: &mut Array<f32>,
    documents: u32,
    #[comptime] sizes: Sizes,
    #[define(F)] _dtype: StorageType,
) {
    let dim = comptime!(sizes.value_dim);
    if CUBE_POS as u32 >= documents * comptime!(sizes.values * sizes.key_dim.div_ceil(UNITS)) {
        terminate!();
    }
    let own = own(offsets, sizes.key_dim, sizes);
    let mut shared = SharedMemory::<f32>::new(comptime!((3 * sizes.value_dim) as usize));
    let mut e = zeros(dim);
    for back in 0..own.end - own.first {
        let token = own.end - 1 - back;
        let head = token * sizes.values + own.head;
        sync_cube();
        share::<F>(dy, head * dim, &mut shared, 0u32, dim);
        share::<f32>(delta, head * dim, &mut shared, dim, dim);
        share::<f32>(ddelta, head * dim, &mut shared, comptime!(2 * dim), dim);
        sync_cube();
        let (kept, beta) = (gates[(head * 2) as usize], gates[(head * 2 + 1) as usize]);
        let mut key = 0.0f32;
        let mut query = 0.0f32;
        if own.is_real {
            let at = unit_row(token, own.head, sizes) + own.index;
            key = unit[at as usize];
            query = unit[(at + sizes.key_dim) as usize];
        }
        let written = beta * key;
        let mut sum = 0.0f32;
        #[unroll]
        for j in 0..dim {
            e[j as usize] += query * shared[j as usize];
            sum += e[j as usize] * shared[comptime!((dim + j) as usize)];
            e[j as usize] = kept * (e[j as usize] - written * shared[comptime!((2 * dim + j) as usize)]);
        }
        if own.is_real {
            col[(head * sizes.key_dim + own.index) as usize] = sum;
        }
        if begins_chunk(token, &own) && own.is_real {
            let place = chunk_row(token, &own, sizes);
            let mut product = 0.0f32;
            #[unroll]
            for j in 0..dim {
                product += states[(place * dim + j) as usize] * e[j as usize];
            }
            anchors[place as usize] = product;
        }
    }
}
