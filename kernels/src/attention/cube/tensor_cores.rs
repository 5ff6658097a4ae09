//! What both directions on tensor cores share: tile sizes, shared memory, and staging.
//!
//! A cube owns `planes × fragment` rows, a plane `fragment` of them; columns come in tiles of `columns` through shared
//! memory. A plane's scores leave its fragments through a strip of shared memory, column by column, since fragments do
//! not tell which element is where; a lane then holds one row and every so-many-th column, and what it makes of them
//! returns to fragments through a second strip in the operands' dtype. Sums stay in fragments throughout.

use burn_cubecl::CubeRuntime;
use burn_tensor::DType;
use cubecl::features::{MmaConfig, Plane};
use cubecl::prelude::*;

use super::rows::Rows;
use crate::cube::tensor::syncs_planes;

/// Tile sizes of a kernel, known when it is compiled.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) struct Tile {
    /// Dimensions of a head: a multiple of 8.
    pub(super) head_dim: u32,
    /// Rows, columns and depth of a fragment.
    pub(super) fragment: u32,
    /// Units of a plane.
    pub(super) lanes: u32,
    /// Planes of a cube.
    pub(super) planes: u32,
    /// Columns of a tile.
    pub(super) columns: u32,
    /// Elements of a vector of the operands.
    pub(super) vector: u32,
    /// Whether a plane can be synchronized by itself, shared memory included.
    pub(super) syncs_planes: bool,
}

impl Tile {
    /// Rows that a cube owns.
    pub(super) const fn rows(&self) -> u32 {
        self.planes * self.fragment
    }

    /// Units of a cube.
    pub(super) const fn units(&self) -> u32 {
        self.planes * self.lanes
    }

    /// Dimensions of a head, filled up to whole fragments.
    pub(super) const fn width(&self) -> u32 {
        self.head_dim.next_multiple_of(self.fragment)
    }

    /// Fragments along a head.
    pub(super) const fn depth(&self) -> u32 {
        self.width() / self.fragment
    }

    /// From a staged row to the next, in elements: 16 bytes more than are used, against bank conflicts.
    pub(super) const fn pitch(&self) -> u32 {
        self.width() + 8
    }

    /// Lanes that share a row of a strip.
    pub(super) const fn sharers(&self) -> u32 {
        self.lanes / self.fragment
    }

    /// Columns of a strip that a lane holds.
    pub(super) const fn held(&self) -> u32 {
        self.columns / self.sharers()
    }

    /// From a column of the strip of scores to the next.
    pub(super) const fn score_pitch(&self) -> u32 {
        self.fragment + 4
    }

    /// From a column of the strip of weights to the next.
    pub(super) const fn weight_pitch(&self) -> u32 {
        self.fragment + 8
    }

    /// Whether the queries' fragments stay in registers in the forward, beside those of the sums.
    pub(super) const fn holds_queries(&self) -> bool {
        self.width() <= 128
    }

    /// Staged rows in the forward: keys and values, and before them the queries, in the same place if they move on into
    /// registers.
    pub(super) const fn forward_rows(&self) -> u32 {
        let tile = 2 * self.columns;
        if !self.holds_queries() {
            self.rows() + tile
        } else if self.rows() > tile {
            self.rows()
        } else {
            tile
        }
    }

    /// Vectors in `rows` staged rows.
    pub(super) const fn staged(&self, rows: u32) -> usize {
        (rows * self.pitch() / self.vector) as usize
    }

    /// Shared memory for `rows` staged rows, the strips and what is small, in bytes.
    const fn shared(&self, rows: u32) -> usize {
        let strips = self.planes * self.columns * (4 * self.score_pitch() + 2 * self.weight_pitch());
        (2 * rows * self.pitch() + strips + 4 * self.rows() + 8 * self.columns + 8) as usize
    }

    fn fits(&self, rows: u32, largest: usize) -> bool {
        self.shared(rows) <= largest && self.columns.is_multiple_of(self.sharers())
    }
}

/// Tile sizes for a device, the best first that its shared memory holds; none if it has no fragments of this dtype.
pub(super) fn tile<R: CubeRuntime>(
    client: &ComputeClient<R>,
    dtype: DType,
    head_dim: usize,
    staged_rows: impl Fn(&Tile) -> u32,
) -> Option<Tile> {
    if !matches!(dtype, DType::F16 | DType::BF16) || !head_dim.is_multiple_of(8) || head_dim > 256 {
        return None;
    }
    let properties = client.properties();
    let hardware = &properties.hardware;
    let lanes = hardware.plane_size_max;
    if hardware.plane_size_min != lanes {
        return None;
    }
    let operand: StorageType = dtype.into();
    let fragment = [16, 8].into_iter().find(|size| {
        let config = MmaConfig {
            a_type: operand,
            b_type: operand,
            cd_type: DType::F32.into(),
            m: *size,
            n: *size,
            k: *size,
        };
        properties.features.matmul.cmma.contains(&config)
    })?;
    let has_shuffles = properties.features.plane.contains(Plane::Ops);
    if !lanes.is_multiple_of(fragment) || (lanes > fragment && !has_shuffles) {
        return None;
    }
    let vector = hardware.max_vector_size.min(8) as u32;
    let syncs_planes = syncs_planes(client);
    [(4, 32), (4, 16), (2, 32), (2, 16), (1, 16)]
        .into_iter()
        .map(|(planes, columns)| Tile {
            head_dim: head_dim as u32,
            fragment,
            lanes,
            planes,
            columns,
            vector,
            syncs_planes,
        })
        .find(|tile| tile.fits(staged_rows(tile), hardware.max_shared_memory_size))
}

/// Makes what the lanes of a plane wrote to shared memory visible among them.
#[cube]
pub(super) fn sync_strip(#[comptime] tile: Tile) {
    if comptime!(tile.syncs_planes) {
        sync_plane();
    } else {
        sync_cube();
    }
}

/// Stages `staged` rows of a head from row `at` of shared memory on; rows past the end are 0.
#[cube]
pub(super) fn stage<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    rows: Rows,
    shared: &mut SharedMemory<Vector<F, N>>,
    at: u32,
    #[comptime] staged: u32,
    #[comptime] tile: Tile,
) {
    let width = comptime!(tile.width() / tile.vector);
    let pitch = comptime!(tile.pitch() / tile.vector);
    let unit = UNIT_POS_Y * comptime!(tile.lanes) + UNIT_POS_X;
    let count = comptime!(staged * width);
    #[unroll]
    for i in 0..comptime!(count.div_ceil(tile.units())) {
        let vector = unit + i * comptime!(tile.units());
        if vector < count {
            let row = vector / width;
            let column = vector % width;
            let mut value = Vector::<F, N>::new(F::new(0.0));
            if row < rows.count && column < comptime!(tile.head_dim / tile.vector) {
                value = x[(rows.start + row * rows.pitch + column) as usize];
            }
            shared[((at + row) * pitch + column) as usize] = value;
        }
    }
}

/// Loads an operand's fragment whose first element is `column` of staged row `row`.
#[cube]
pub(super) fn load_staged<F: Float, N: Size>(
    shared: &SharedMemory<Vector<F, N>>,
    row: u32,
    #[comptime] column: u32,
    #[comptime] ident: cmma::MatrixIdent,
    #[comptime] layout: cmma::MatrixLayout,
    #[comptime] tile: Tile,
) -> cmma::Matrix<F> {
    let size = comptime!(tile.fragment as usize);
    // SAFETY: loaded before use.
    let matrix = unsafe { cmma::Matrix::<F>::uninitialized(ident, size, size, size, layout) };
    let pitch = comptime!(tile.pitch());
    let start = (row * comptime!(pitch / tile.vector) + comptime!(column / tile.vector)) as usize;
    let length = comptime!((tile.fragment * pitch / tile.vector) as usize);
    cmma::load(&matrix, &shared.slice(start, start + length), pitch);
    matrix
}

/// A fragment of zeros to add to.
#[cube]
pub(super) fn zero_sums(#[comptime] tile: Tile) -> cmma::Matrix<f32> {
    let size = comptime!(tile.fragment as usize);
    cmma::Matrix::<f32>::from_value(
        cmma::MatrixIdent::Accumulator,
        size,
        size,
        size,
        cmma::MatrixLayout::Undefined,
        0.0f32,
    )
}

/// Stores a fragment of sums as columns `column..` of this plane's strip of scores.
#[cube]
pub(super) fn store_scores(
    matrix: &cmma::Matrix<f32>,
    scores: &mut SharedMemory<f32>,
    #[comptime] column: u32,
    #[comptime] tile: Tile,
) {
    let pitch = comptime!(tile.score_pitch());
    let start = (UNIT_POS_Y * comptime!(tile.columns * pitch) + comptime!(column * pitch)) as usize;
    let length = comptime!((tile.fragment * pitch) as usize);
    cmma::store(&mut scores.slice_mut(start, start + length), matrix, pitch, cmma::MatrixLayout::ColMajor);
}

/// Adds a · bᵀ over the dimensions of a head for this plane's rows, `a` staged from row `a_row` on, and all columns of
/// a tile, `b` staged from row `b_row` on, and stores it in the plane's strip.
#[cube]
pub(super) fn scores_to_strip<F: Float, N: Size>(
    shared: &SharedMemory<Vector<F, N>>,
    a_row: u32,
    b_row: u32,
    scores: &mut SharedMemory<f32>,
    #[comptime] tile: Tile,
) {
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    let across = comptime!(tile.columns / tile.fragment);
    #[unroll]
    for _ in 0..across {
        sums.push(zero_sums(tile));
    }
    #[unroll]
    for d in 0..comptime!(tile.depth()) {
        let column = comptime!(d * tile.fragment);
        let a = load_staged::<F, N>(
            shared,
            a_row,
            column,
            cmma::MatrixIdent::A,
            cmma::MatrixLayout::RowMajor,
            tile,
        );
        #[unroll]
        for c in 0..across {
            let b = load_staged::<F, N>(
                shared,
                b_row + c * comptime!(tile.fragment),
                column,
                cmma::MatrixIdent::B,
                cmma::MatrixLayout::ColMajor,
                tile,
            );
            let sum = sums.index(comptime!(c as usize));
            cmma::execute(&a, &b, sum, sum);
        }
    }
    #[unroll]
    for c in 0..across {
        store_scores(sums.index(comptime!(c as usize)), scores, comptime!(c * tile.fragment), tile);
    }
}

/// Adds weights · b to the sums, fragment by fragment along a head: the weights of this plane's strip, `b` staged from
/// row `b_row` on.
#[cube]
pub(super) fn add_products<F: Float, N: Size>(
    sums: &Sequence<cmma::Matrix<f32>>,
    weights: &SharedMemory<F>,
    shared: &SharedMemory<Vector<F, N>>,
    b_row: u32,
    #[comptime] tile: Tile,
) {
    let size = comptime!(tile.fragment as usize);
    let pitch = comptime!(tile.weight_pitch());
    let strip = UNIT_POS_Y * comptime!(tile.columns * pitch);
    #[unroll]
    for c in 0..comptime!(tile.columns / tile.fragment) {
        // SAFETY: loaded before use.
        let a = unsafe {
            cmma::Matrix::<F>::uninitialized(
                cmma::MatrixIdent::A,
                size,
                size,
                size,
                cmma::MatrixLayout::ColMajor,
            )
        };
        let start = (strip + comptime!(c * tile.fragment * pitch)) as usize;
        let length = comptime!((tile.fragment * pitch) as usize);
        cmma::load(&a, &weights.slice(start, start + length), pitch);
        #[unroll]
        for d in 0..comptime!(tile.depth()) {
            let b = load_staged::<F, N>(
                shared,
                b_row + c * comptime!(tile.fragment),
                comptime!(d * tile.fragment),
                cmma::MatrixIdent::B,
                cmma::MatrixLayout::RowMajor,
                tile,
            );
            let sum = sums.index(comptime!(d as usize));
            cmma::execute(&a, &b, sum, sum);
        }
    }
}

/// Writes this plane's sums to its rows, each row times its factor in shared memory; the strip of scores is used up.
#[cube]
pub(super) fn store_sums<F: Float>(
    sums: &Sequence<cmma::Matrix<f32>>,
    factors: &SharedMemory<f32>,
    scores: &mut SharedMemory<f32>,
    y: &mut Array<F>,
    rows: Rows,
    #[comptime] tile: Tile,
) {
    let fragment = comptime!(tile.fragment);
    let strip = UNIT_POS_Y * comptime!(tile.columns * tile.score_pitch());
    #[unroll]
    for d in 0..comptime!(tile.depth()) {
        sync_strip(tile);
        store_scores(sums.index(comptime!(d as usize)), scores, 0u32, tile);
        sync_strip(tile);
        #[unroll]
        for i in 0..comptime!(fragment / tile.sharers()) {
            let at = UNIT_POS_X + i * comptime!(tile.lanes);
            let row = UNIT_POS_Y * fragment + at / fragment;
            let column = comptime!(d * fragment) + at % fragment;
            if row < rows.count && column < comptime!(tile.head_dim) {
                let sum = scores
                    [(strip + (at % fragment) * comptime!(tile.score_pitch()) + at / fragment) as usize];
                let to = rows.start + row * rows.pitch + column;
                y[to as usize] = F::cast_from(sum * factors[row as usize]);
            }
        }
    }
}
