//! `outᵀ = skinnyᵀ · wide`: sums along the columns of the wide matrices, such as `dA = dtᵀ x` and `dB = dyᵀ t`. One launch
//! for several wide matrices of as many rows, each with a result of its own.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_tensor::DType;
use cubecl::prelude::*;

use super::{LANES, SLICES, TILE, UNITS, VECTOR, add_up};
use crate::cube::mask::{self, MaskData, masked};
use crate::cube::tensor::{array, array_of, dims, empty, many, vector_size};
use crate::dropout::Dropout;

/// Columns of a wide matrix that a cube works on.
const COLUMNS: u32 = 2 * TILE;

/// Columns of a lane.
const LANE_COLUMNS: u32 = 4;

/// Lanes of a slice side by side along the columns; the others lie along the ranks.
const COLUMN_LANES: u32 = COLUMNS / LANE_COLUMNS;

/// Lanes along the ranks.
const RANK_LANES: u32 = LANES / COLUMN_LANES;

/// Tokens that a slice takes before the next ones are another's.
const RUN: u32 = 4;

/// Tokens that all slices take so.
const ROUND: u32 = SLICES * RUN;

/// Elements from one rank's results to the next.
const PITCH: u32 = COLUMNS + 1;

/// `factor · skinnyᵀ · wide + before`, f32.
pub(crate) struct Part<'a, R: CubeRuntime> {
    /// `[tokens, columns]`.
    pub(crate) wide: &'a CubeTensor<R>,
    /// What its elements go through as they are read.
    pub(crate) dropout: Option<Dropout>,
    /// Which of the skinny tensors it is multiplied by, and the columns of that.
    pub(crate) skinny: Skinny,
    pub(crate) first: usize,
    pub(crate) ranks: usize,
    pub(crate) factor: f32,
    /// Like the result.
    pub(crate) before: Option<CubeTensor<R>>,
}

/// A skinny tensor of a call, and how the results that it has a part in are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Skinny {
    /// The first one; results are `[ranks, columns]`.
    First,
    /// The second one; results are `[columns, ranks]`.
    Second,
}

impl<R: CubeRuntime> Part<'_, R> {
    fn columns(&self) -> usize {
        dims(self.wide)[1]
    }

    fn result(&self) -> CubeTensor<R> {
        let shape = match self.skinny {
            Skinny::First => [self.ranks, self.columns()],
            Skinny::Second => [self.columns(), self.ranks],
        };
        empty(self.wide, &shape, DType::F32)
    }
}

/// The results of all parts, from skinny tensors `[tokens, total]` of the wide matrices' dtype.
pub(crate) fn columns<R: CubeRuntime>(
    parts: &[Part<'_, R>],
    skinny: [&CubeTensor<R>; 2],
) -> Vec<CubeTensor<R>> {
    let (client, dtype) = (&skinny[0].client, skinny[0].dtype);
    let [tokens, total] = [0, 1].map(|axis| dims(skinny[0])[axis]);
    let vector = |lengths: &[usize]| vector_size(client, dtype, lengths).min(VECTOR);
    let ranks = parts.iter().map(|part| part.ranks).max().unwrap_or(0);
    let lane_ranks = ranks.div_ceil(RANK_LANES as usize).max(1);
    let widths: Vec<_> = parts.iter().map(Part::columns).collect();
    let mut places: Vec<_> = parts.iter().map(|part| part.first).collect();
    places.extend([total, lane_ranks]);
    let (vector, skinny_vector) = (vector(&widths), vector(&places));
    let tile =
        Tile { lane_ranks: lane_ranks as u32, vector: vector as u32, skinny_vector: skinny_vector as u32 };
    let results: Vec<_> = parts.iter().map(Part::result).collect();
    let together = many(client, 3);
    for (parts, results) in parts.chunks(together).zip(results.chunks(together)) {
        let argument = |(part, result): (&Part<'_, R>, &CubeTensor<R>)| {
            PartDataLaunch::new(
                array_of(part.wide, vector),
                array(result),
                part.before.as_ref().map(array).into(),
                mask::argument(part.dropout.as_ref()),
                part.columns() as u32,
                part.first as u32,
                part.ranks as u32,
                part.factor,
                part.skinny == Skinny::Second,
            )
        };
        let most = parts.iter().map(Part::columns).max().unwrap_or(0) as u32;
        // SAFETY: rows, columns and ranks beside the operands are not read, nor written in the results; the vector sizes
        // divide the rows of what is read by them.
        unsafe {
            columns_kernel::launch_unchecked::<R>(
                client,
                // Those that read the same columns are neighbours.
                CubeCount::Static(parts.len() as u32, most.div_ceil(COLUMNS), 1),
                CubeDim::new_1d(UNITS),
                vector,
                skinny_vector,
                parts.iter().zip(results).map(argument).collect(),
                array_of(skinny[0], skinny_vector),
                array_of(skinny[1], skinny_vector),
                tokens as u32,
                total as u32,
                tile,
                parts.iter().any(|part| part.dropout.is_some()),
                dtype.into(),
            );
        }
    }
    results
}

/// A [`Part`] in a kernel, and where its result goes.
#[derive(CubeType, CubeLaunch)]
struct PartData<E: CubePrimitive> {
    wide: Array<E>,
    result: Array<f32>,
    before: ComptimeOption<Array<f32>>,
    mask: MaskData,
    columns: u32,
    first: u32,
    ranks: u32,
    factor: f32,
    #[cube(comptime)]
    is_second: bool,
}

/// What a cube's tile is.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Tile {
    /// Ranks of a lane.
    lane_ranks: u32,
    /// Elements of a vector of a wide matrix.
    vector: u32,
    /// Of the skinny ones.
    skinny_vector: u32,
}

impl Tile {
    fn ranks(&self) -> u32 {
        RANK_LANES * self.lane_ranks
    }

    /// Tokens that pass through shared memory together: as many rounds of the slices as there is room for.
    fn tokens(&self) -> u32 {
        if self.ranks() > 32 { ROUND } else { 2 * ROUND }
    }

    /// Vectors of a staged row of the wide matrix, and of the skinny one.
    fn widths(&self) -> [u32; 2] {
        [COLUMNS / self.vector, self.ranks() / self.skinny_vector]
    }

    /// Vectors that a unit stages of rows of so many.
    fn loads(&self, width: u32) -> u32 {
        (self.tokens() * width).div_ceil(UNITS)
    }
}

/// What a cube works on.
#[derive(CubeType, Clone, Copy)]
struct Place {
    tokens: u32,
    column: u32,
    columns: u32,
    /// First column of the skinny tensor, and all that it has.
    first: u32,
    total: u32,
}

/// One cube for each tile of a part's result.
#[cube(launch_unchecked)]
fn columns_kernel<F: Float, N: Size, M: Size>(
    parts: &mut Sequence<PartData<Vector<F, N>>>,
    one: &Array<Vector<F, M>>,
    other: &Array<Vector<F, M>>,
    tokens: u32,
    total: u32,
    #[comptime] tile: Tile,
    #[comptime] masks: bool,
    #[define(F)] _dtype: StorageType,
) {
    let column = CUBE_POS_Y * COLUMNS;
    let mut columns = 0u32;
    let mut first = 0u32;
    #[unroll]
    for index in 0..parts.len() {
        if CUBE_POS_X == index as u32 {
            columns = parts.index(index).columns;
            first = parts.index(index).first;
        }
    }
    if column >= columns {
        terminate!();
    }
    let place = Place { tokens, column, columns, first, total };
    let [width, skinny_width] = comptime!(tile.widths());
    let mut wide_tile = SharedMemory::<Vector<f32, N>>::new(comptime!((tile.tokens() * width) as usize));
    let mut skinny_tile =
        SharedMemory::<Vector<f32, M>>::new(comptime!((tile.tokens() * skinny_width) as usize));
    let mut wide_next = Array::<Vector<f32, N>>::new(comptime!(tile.loads(width) as usize));
    let mut skinny_next = Array::<Vector<f32, M>>::new(comptime!(tile.loads(skinny_width) as usize));
    let mut sums = Array::<f32>::new(comptime!((LANE_COLUMNS * tile.lane_ranks) as usize));
    #[unroll]
    for i in 0..comptime!(LANE_COLUMNS * tile.lane_ranks) {
        sums[i as usize] = 0.0f32;
    }

    read_wide::<F, N>(parts, place, 0u32, &mut wide_next, tile, masks);
    read_skinny::<F, N, M>(parts, one, other, place, 0u32, &mut skinny_next, tile);
    let mut token = 0u32;
    while token < tokens {
        sync_cube();
        stage::<N>(&wide_next, &mut wide_tile, width, tile);
        stage::<M>(&skinny_next, &mut skinny_tile, skinny_width, tile);
        sync_cube();
        token += comptime!(tile.tokens());
        if token < tokens {
            read_wide::<F, N>(parts, place, token, &mut wide_next, tile, masks);
            read_skinny::<F, N, M>(parts, one, other, place, token, &mut skinny_next, tile);
        }
        multiply::<N, M>(&wide_tile, &skinny_tile, &mut sums, tile);
    }

    let mut results = SharedMemory::<f32>::new(comptime!((tile.ranks() * PITCH) as usize));
    let lane = UNIT_POS % LANES;
    add_up(
        &sums,
        &mut results,
        lane / COLUMN_LANES * comptime!(tile.lane_ranks * PITCH) + lane % COLUMN_LANES * LANE_COLUMNS,
        comptime!([tile.lane_ranks, LANE_COLUMNS]),
        comptime!([PITCH, 1]),
    );
    #[unroll]
    for index in 0..parts.len() {
        if CUBE_POS_X == index as u32 {
            write::<F, N>(parts.index_mut(index), &results, place, tile);
        }
    }
}

/// Reads this unit's vectors of the tile of a wide matrix that begins with `token`; zeros beside the matrix.
#[cube]
fn read_wide<F: Float, N: Size>(
    parts: &Sequence<PartData<Vector<F, N>>>,
    place: Place,
    token: u32,
    next: &mut Array<Vector<f32, N>>,
    #[comptime] tile: Tile,
    #[comptime] masks: bool,
) {
    let [width, _] = comptime!(tile.widths());
    #[unroll]
    for index in 0..parts.len() {
        if CUBE_POS_X == index as u32 {
            let part = parts.index(index);
            #[unroll]
            for i in 0..comptime!(tile.loads(width)) {
                let at = UNIT_POS + i * UNITS;
                let (row, column) = (token + at / width, place.column + at % width * tile.vector);
                let mut value = Vector::<f32, N>::new(0.0f32);
                if row < place.tokens && column < place.columns {
                    let from = row * place.columns + column;
                    value = Vector::cast_from(part.wide[(from / tile.vector) as usize]);
                    if comptime!(masks) {
                        value = masked::<N>(value, from, &part.mask, tile.vector);
                    }
                }
                next[i as usize] = value;
            }
        }
    }
}

/// Reads this unit's vectors of the tile of its skinny tensor likewise; behind the part's ranks comes what does not count.
#[cube]
fn read_skinny<F: Float, N: Size, M: Size>(
    parts: &Sequence<PartData<Vector<F, N>>>,
    one: &Array<Vector<F, M>>,
    other: &Array<Vector<F, M>>,
    place: Place,
    token: u32,
    next: &mut Array<Vector<f32, M>>,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for index in 0..parts.len() {
        if CUBE_POS_X == index as u32 {
            let part = parts.index(index);
            if comptime!(part.is_second) {
                read_skinny_of::<F, M>(other, place, token, next, tile);
            } else {
                read_skinny_of::<F, M>(one, place, token, next, tile);
            }
        }
    }
}

#[cube]
fn read_skinny_of<F: Float, M: Size>(
    skinny: &Array<Vector<F, M>>,
    place: Place,
    token: u32,
    next: &mut Array<Vector<f32, M>>,
    #[comptime] tile: Tile,
) {
    let [_, width] = comptime!(tile.widths());
    #[unroll]
    for i in 0..comptime!(tile.loads(width)) {
        let at = UNIT_POS + i * UNITS;
        let (row, rank) = (token + at / width, place.first + at % width * tile.skinny_vector);
        let mut value = Vector::<f32, M>::new(0.0f32);
        if row < place.tokens && rank < place.total {
            value = Vector::cast_from(skinny[((row * place.total + rank) / tile.skinny_vector) as usize]);
        }
        next[i as usize] = value;
    }
}

/// Writes what was read to a staged tile, row after row.
#[cube]
fn stage<N: Size>(
    next: &Array<Vector<f32, N>>,
    staged: &mut SharedMemory<Vector<f32, N>>,
    #[comptime] width: u32,
    #[comptime] tile: Tile,
) {
    #[unroll]
    for i in 0..comptime!(tile.loads(width)) {
        let at = UNIT_POS + i * UNITS;
        if at < comptime!(tile.tokens() * width) {
            staged[at as usize] = next[i as usize];
        }
    }
}

/// Adds this slice's tokens of the staged tiles to the sums of each lane.
#[cube]
fn multiply<N: Size, M: Size>(
    wide: &SharedMemory<Vector<f32, N>>,
    skinny: &SharedMemory<Vector<f32, M>>,
    sums: &mut Array<f32>,
    #[comptime] tile: Tile,
) {
    let [width, skinny_width] = comptime!(tile.widths());
    let tokens = comptime!(tile.tokens() / SLICES);
    let first = UNIT_POS / LANES * RUN;
    let lane = UNIT_POS % LANES;
    let (vectors, skinny_vectors) =
        comptime!((LANE_COLUMNS / tile.vector, tile.lane_ranks / tile.skinny_vector));
    let column = lane % COLUMN_LANES * vectors;
    let rank = lane / COLUMN_LANES * skinny_vectors;
    let mut values = Array::<Vector<f32, N>>::new(comptime!(vectors as usize));
    #[unroll]
    for step in 0..tokens {
        let row = first + comptime!(step / RUN * ROUND + step % RUN);
        #[unroll]
        for i in 0..vectors {
            values[i as usize] = wide[(row * width + column + i) as usize];
        }
        #[unroll]
        for j in 0..skinny_vectors {
            let factors = skinny[(row * skinny_width + rank + j) as usize];
            #[unroll]
            for r in 0..comptime!(tile.skinny_vector) {
                let factor = factors[r as usize];
                #[unroll]
                for i in 0..vectors {
                    let value = values[i as usize];
                    #[unroll]
                    for c in 0..comptime!(tile.vector) {
                        let own =
                            comptime!((j * tile.skinny_vector + r) * LANE_COLUMNS + i * tile.vector + c);
                        sums[own as usize] += factor * value[c as usize];
                    }
                }
            }
        }
    }
}

/// Writes a cube's results.
#[cube]
fn write<F: Float, N: Size>(
    part: &mut PartData<Vector<F, N>>,
    results: &SharedMemory<f32>,
    place: Place,
    #[comptime] tile: Tile,
) {
    let ranks = comptime!(tile.ranks());
    #[unroll]
    for i in 0..comptime!((ranks * COLUMNS).div_ceil(UNITS)) {
        let at = UNIT_POS + i * UNITS;
        // Units side by side along the rows of the result.
        let mut rank = at / COLUMNS;
        let mut column = at % COLUMNS;
        let mut to = rank * place.columns + place.column + column;
        if comptime!(part.is_second) {
            rank = at % ranks;
            column = at / ranks;
            to = (place.column + column) * part.ranks + rank;
        }
        if rank < part.ranks && column < COLUMNS && place.column + column < place.columns {
            let mut sum = results[(rank * PITCH + column) as usize] * part.factor;
            #[comptime]
            match &part.before {
                ComptimeOption::Some(before) => {
                    sum += before[to as usize];
                }
                ComptimeOption::None => {}
            }
            part.result[to as usize] = sum;
        }
    }
}
