//! `out = wide · skinnyᵀ` and `out = wide · skinny`: sums along the rows of the wide matrices, such as `t = x Aᵀ` and
//! `dt = dy B`. One launch for several wide matrices of as many rows, each with columns of the result of its own.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{LANES, SLICES, TILE, UNITS, VECTOR, add_up};
use crate::cube::mask::{self, MaskData, masked};
use crate::cube::tensor::{array, array_of, dims, empty, many, vector_size};
use crate::dropout::Dropout;

/// Rows of a cube's tile of the result.
const TOKENS: u32 = TILE;

/// Ranks of a tile at most.
const RANKS: usize = 64;

/// Steps of the reduction that pass through shared memory together.
const DEPTH: u32 = 64;

/// Lanes of a slice side by side along the ranks; the others lie along the tokens.
const RANK_LANES: u32 = 8;

/// Tokens of a lane.
const LANE_TOKENS: u32 = TOKENS / (LANES / RANK_LANES);

/// One wide matrix, and what it is multiplied by.
pub(crate) struct Part<'a, R: CubeRuntime> {
    /// `[tokens, inner]`.
    pub(crate) wide: &'a CubeTensor<R>,
    /// What its elements go through as they are read.
    pub(crate) dropout: Option<Dropout>,
    /// Element of the skinny tensor that this part's matrix begins with.
    pub(crate) offset: usize,
    /// First column of the result.
    pub(crate) first: usize,
    /// Columns of it.
    pub(crate) ranks: usize,
}

/// The products of all parts, side by side in a tensor `[tokens, total]` of the wide matrices' dtype, in which skinny
/// matrices are as well: `[ranks, inner]` where they are `transposed`, else `[inner, ranks]`.
pub(crate) fn rows<R: CubeRuntime>(
    parts: &[Part<'_, R>],
    skinny: &CubeTensor<R>,
    transposed: bool,
    total: usize,
) -> CubeTensor<R> {
    let (client, dtype) = (&skinny.client, skinny.dtype);
    let tokens = parts.first().map_or(0, |part| dims(part.wide)[0]);
    let out = empty(skinny, &[tokens, total], dtype);
    let inner = |part: &Part<'_, R>| dims(part.wide)[1];
    let mut lengths: Vec<_> = parts.iter().map(inner).collect();
    if transposed {
        lengths.extend(parts.iter().map(|part| part.offset));
    }
    let vector = vector_size(client, dtype, &lengths).min(VECTOR);
    let along = if transposed { vector } else { 1 };
    for together in parts.chunks(many(client, 1)) {
        let ranks = together.iter().map(|part| part.ranks).max().unwrap_or(0);
        // More than a tile's ranks take several, and the wide matrix is read for each.
        let tiles = ranks.div_ceil(RANKS).max(1);
        let lane_ranks = ranks.div_ceil(tiles).div_ceil(RANK_LANES as usize).max(1) as u32;
        let argument = |part: &Part<'_, R>| {
            let [inner, offset, first, ranks] =
                [inner(part), part.offset, part.first, part.ranks].map(|number| number as u32);
            let data = array_of(part.wide, vector);
            PartDataLaunch::new(data, mask::argument(part.dropout.as_ref()), inner, offset, first, ranks)
        };
        let tiles = tiles as u32;
        // Those that may read the same rows are neighbours.
        let cubes =
            CubeCount::Static(tiles * together.len() as u32, (tokens as u32).div_ceil(TOKENS).max(1), 1);
        // SAFETY: rows, steps and ranks beside the operands are not read, nor written in the result; the vector size divides
        // the rows of all operands.
        unsafe {
            rows_kernel::launch_unchecked::<R>(
                client,
                cubes,
                CubeDim::new_1d(UNITS),
                vector,
                along,
                together.iter().map(argument).collect(),
                array_of(skinny, along),
                array(&out),
                tokens as u32,
                total as u32,
                tiles,
                Tile { lane_ranks, vector: vector as u32 },
                transposed,
                together.iter().any(|part| part.dropout.is_some()),
                dtype.into(),
            );
        }
    }
    out
}

/// A [`Part`] in a kernel.
#[derive(CubeType, CubeLaunch)]
struct PartData<E: CubePrimitive> {
    data: Array<E>,
    mask: MaskData,
    inner: u32,
    offset: u32,
    first: u32,
    ranks: u32,
}

/// What a cube's tile is.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Tile {
    /// Ranks of a lane.
    lane_ranks: u32,
    /// Elements of a vector of the reduction.
    vector: u32,
}

impl Tile {
    fn ranks(&self) -> u32 {
        RANK_LANES * self.lane_ranks
    }

    /// Vectors of a row of staged steps.
    fn steps(&self) -> u32 {
        DEPTH / self.vector
    }

    /// Vectors from one staged row to the next: one more, so that lanes read from different banks.
    fn pitch(&self) -> u32 {
        self.steps() + 1
    }

    /// Vectors that a unit stages of so many rows.
    fn loads(&self, rows: u32) -> u32 {
        (rows * self.steps()).div_ceil(UNITS)
    }
}

/// What a cube works on.
#[derive(CubeType, Clone, Copy)]
struct Place {
    part: u32,
    token: u32,
    tokens: u32,
    rank: u32,
    ranks: u32,
    inner: u32,
    offset: u32,
}

/// One cube for each tile of a part's columns of the result.
#[cube(launch_unchecked)]
fn rows_kernel<F: Float, N: Size, M: Size>(
    parts: &Sequence<PartData<Vector<F, N>>>,
    skinny: &Array<Vector<F, M>>,
    out: &mut Array<F>,
    tokens: u32,
    total: u32,
    tiles: u32,
    #[comptime] tile: Tile,
    #[comptime] transposed: bool,
    #[comptime] masks: bool,
    #[define(F)] _dtype: StorageType,
) {
    let own = CUBE_POS_X / tiles;
    let rank = CUBE_POS_X % tiles * comptime!(tile.ranks());
    let mut ranks = 0u32;
    let mut inner = 0u32;
    let mut offset = 0u32;
    let mut first = 0u32;
    #[unroll]
    for index in 0..parts.len() {
        if own == index as u32 {
            let part = parts.index(index);
            ranks = part.ranks;
            inner = part.inner;
            offset = part.offset;
            first = part.first;
        }
    }
    if rank >= ranks {
        terminate!();
    }
    let place = Place { part: own, token: CUBE_POS_Y * TOKENS, tokens, rank, ranks, inner, offset };
    let mut wide_tile = SharedMemory::<Vector<f32, N>>::new(comptime!((TOKENS * tile.pitch()) as usize));
    let mut skinny_tile =
        SharedMemory::<Vector<f32, N>>::new(comptime!((tile.ranks() * tile.pitch()) as usize));
    let mut wide_next = Array::<Vector<f32, N>>::new(comptime!(tile.loads(TOKENS) as usize));
    let mut skinny_next = Array::<Vector<f32, N>>::new(comptime!(tile.loads(tile.ranks()) as usize));
    let mut sums = Array::<f32>::new(comptime!((LANE_TOKENS * tile.lane_ranks) as usize));
    #[unroll]
    for i in 0..comptime!(LANE_TOKENS * tile.lane_ranks) {
        sums[i as usize] = 0.0f32;
    }

    read_wide::<F, N>(parts, place, 0u32, &mut wide_next, tile, masks);
    read_skinny::<F, N, M>(skinny, place, 0u32, &mut skinny_next, tile, transposed);
    let mut step = 0u32;
    while step < inner {
        sync_cube();
        stage::<N>(&wide_next, &mut wide_tile, TOKENS, tile, true);
        stage::<N>(&skinny_next, &mut skinny_tile, comptime!(tile.ranks()), tile, transposed);
        sync_cube();
        step += DEPTH;
        if step < inner {
            read_wide::<F, N>(parts, place, step, &mut wide_next, tile, masks);
            read_skinny::<F, N, M>(skinny, place, step, &mut skinny_next, tile, transposed);
        }
        multiply::<N>(&wide_tile, &skinny_tile, &mut sums, tile);
    }

    let mut results = SharedMemory::<f32>::new(comptime!((TOKENS * tile.ranks()) as usize));
    let lane = UNIT_POS % LANES;
    add_up(
        &sums,
        &mut results,
        lane / RANK_LANES * comptime!(LANE_TOKENS * tile.ranks()) + lane % RANK_LANES,
        comptime!([LANE_TOKENS, tile.lane_ranks]),
        comptime!([tile.ranks(), RANK_LANES]),
    );
    #[unroll]
    for i in 0..comptime!((TOKENS * tile.ranks()).div_ceil(UNITS)) {
        let at = UNIT_POS + i * UNITS;
        let (token, column) = (at / comptime!(tile.ranks()), rank + at % comptime!(tile.ranks()));
        if token < TOKENS && place.token + token < tokens && column < ranks {
            out[((place.token + token) * total + first + column) as usize] =
                F::cast_from(results[at as usize]);
        }
    }
}

/// Row and vector of a staged tile of so many rows that a unit reads and writes: units side by side along the steps, or
/// down the rows where those lie side by side in memory. Beside the tile the row is beyond it.
#[cube]
fn position(at: u32, #[comptime] rows: u32, #[comptime] tile: Tile, #[comptime] along: bool) -> (u32, u32) {
    let mut row = at / comptime!(tile.steps());
    let mut column = at % comptime!(tile.steps());
    if comptime!(!along) {
        column = at / rows;
        row = select(column < comptime!(tile.steps()), at % rows, rows);
    }
    (row, column)
}

/// Reads this unit's vectors of the wide tile that begins with `step`; zeros beside the matrix.
#[cube]
fn read_wide<F: Float, N: Size>(
    parts: &Sequence<PartData<Vector<F, N>>>,
    place: Place,
    step: u32,
    next: &mut Array<Vector<f32, N>>,
    #[comptime] tile: Tile,
    #[comptime] masks: bool,
) {
    #[unroll]
    for index in 0..parts.len() {
        if place.part == index as u32 {
            let part = parts.index(index);
            #[unroll]
            for i in 0..comptime!(tile.loads(TOKENS)) {
                let (row, column) = position(UNIT_POS + i * UNITS, TOKENS, tile, true);
                let (token, along) = (place.token + row, step + column * tile.vector);
                let mut value = Vector::<f32, N>::new(0.0f32);
                if token < place.tokens && along < place.inner {
                    let from = token * place.inner + along;
                    value = Vector::cast_from(part.data[(from / tile.vector) as usize]);
                    if comptime!(masks) {
                        value = masked::<N>(value, from, &part.mask, tile.vector);
                    }
                }
                next[i as usize] = value;
            }
        }
    }
}

/// Reads this unit's vectors of the skinny tile likewise.
#[cube]
fn read_skinny<F: Float, N: Size, M: Size>(
    skinny: &Array<Vector<F, M>>,
    place: Place,
    step: u32,
    next: &mut Array<Vector<f32, N>>,
    #[comptime] tile: Tile,
    #[comptime] transposed: bool,
) {
    #[unroll]
    for i in 0..comptime!(tile.loads(tile.ranks())) {
        let (row, column) = position(UNIT_POS + i * UNITS, comptime!(tile.ranks()), tile, transposed);
        let (rank, along) = (place.rank + row, step + column * tile.vector);
        let mut value = Vector::<f32, N>::new(0.0f32);
        if row < comptime!(tile.ranks()) && rank < place.ranks && along < place.inner {
            if comptime!(transposed) {
                let from = place.offset + rank * place.inner + along;
                value = Vector::cast_from(skinny[(from / tile.vector) as usize]);
            } else {
                #[unroll]
                for lane in 0..value.vector_size() {
                    let from = place.offset + (along + lane as u32) * place.ranks + rank;
                    value[lane] = f32::cast_from(skinny[from as usize][0]);
                }
            }
        }
        next[i as usize] = value;
    }
}

/// Writes what was read to a staged tile of so many rows.
#[cube]
fn stage<N: Size>(
    next: &Array<Vector<f32, N>>,
    staged: &mut SharedMemory<Vector<f32, N>>,
    #[comptime] rows: u32,
    #[comptime] tile: Tile,
    #[comptime] along: bool,
) {
    #[unroll]
    for i in 0..comptime!(tile.loads(rows)) {
        let (row, column) = position(UNIT_POS + i * UNITS, rows, tile, along);
        if row < rows {
            staged[(row * tile.pitch() + column) as usize] = next[i as usize];
        }
    }
}

/// Adds this slice's steps of the staged tiles to the sums of each lane.
#[cube]
fn multiply<N: Size>(
    wide: &SharedMemory<Vector<f32, N>>,
    skinny: &SharedMemory<Vector<f32, N>>,
    sums: &mut Array<f32>,
    #[comptime] tile: Tile,
) {
    let steps = comptime!(tile.steps() / SLICES);
    let pitch = comptime!(tile.pitch());
    let first = UNIT_POS / LANES * steps;
    let (token, rank) = (UNIT_POS % LANES / RANK_LANES * LANE_TOKENS, UNIT_POS % RANK_LANES);
    let mut values = Array::<Vector<f32, N>>::new(comptime!(LANE_TOKENS as usize));
    #[unroll]
    for step in 0..steps {
        #[unroll]
        for i in 0..LANE_TOKENS {
            values[i as usize] = wide[((token + i) * pitch + first + step) as usize];
        }
        #[unroll]
        for j in 0..comptime!(tile.lane_ranks) {
            let other = skinny[((rank + j * RANK_LANES) * pitch + first + step) as usize];
            #[unroll]
            for i in 0..LANE_TOKENS {
                let value = values[i as usize];
                let mut sum = sums[comptime!((i * tile.lane_ranks + j) as usize)];
                #[unroll]
                for lane in 0..other.vector_size() {
                    sum += value[lane] * other[lane];
                }
                sums[comptime!((i * tile.lane_ranks + j) as usize)] = sum;
            }
        }
    }
}
