//! Products of a wide matrix with a skinny one, such as adapters want beside their layers' own: a group's at once.
//!
//! Tiled products divide a result among cubes. Here a result has few columns or few rows and a long reduction, the wide
//! operand is read once, and that is what the product costs. So a cube of [`SLICES`] slices takes a small tile of the result
//! through the whole reduction: tiles of both operands pass through shared memory in f32, while the next ones are read, each
//! slice multiplies a part of a tile's steps, and at the end slices add their sums up one after the other. The order of a
//! sum depends on its length alone: not on the device, the group, or the vectors that are read.
//!
//! [`rows`] reduces along the rows of the wide operand, [`columns`] along its columns.

pub(crate) mod columns;
pub(crate) mod rows;

use burn_tensor::DType;
use cubecl::prelude::*;

/// Slices of a cube, which share a reduction.
const SLICES: u32 = 8;

/// Units of a slice. On no device need they be a plane.
const LANES: u32 = 32;

/// Units of a cube.
const UNITS: u32 = SLICES * LANES;

/// Columns of a skinny matrix at most, and of all that are multiplied together. Units multiply here: with more columns that
/// takes longer than it takes to read the wide operand, and tiled products are no worse.
const MOST: [usize; 2] = [64, 256];

/// Columns at most where tiled products would take tensor cores.
const MOST_BESIDE_TENSOR_CORES: usize = 32;

/// Rows or columns of a wide matrix that a cube takes at least.
const TILE: u32 = 16;

/// Elements of a vector at most: for as many a mask draws its bits.
const VECTOR: usize = 4;

/// Bytes of shared memory that a cube takes at most.
const SHARED: usize = 28 << 10;

/// Whether skinny products suit what is `ranks` wide, over wide matrices of `tokens` rows and `widths` columns in `dtype`.
pub(crate) fn fit<R: Runtime>(
    client: &ComputeClient<R>,
    dtype: DType,
    ranks: &[usize],
    tokens: usize,
    widths: impl IntoIterator<Item = usize>,
) -> bool {
    let properties = client.properties();
    let (hardware, matmul) = (&properties.hardware, &properties.features.matmul);
    let has_tensor_cores = dtype != DType::F32 && !(matmul.mma.is_empty() && matmul.cmma.is_empty());
    let most = if has_tensor_cores { MOST_BESIDE_TENSOR_CORES } else { MOST[0] };
    let width = widths.into_iter().max().unwrap_or(0);
    let cubes = tokens.max(width).div_ceil(TILE as usize);
    ranks.iter().all(|rank| *rank <= most)
        && ranks.iter().sum::<usize>() <= MOST[1]
        && cubes <= hardware.max_cube_count.1 as usize
        && hardware.max_units_per_cube >= UNITS
        && hardware.max_shared_memory_size >= SHARED
        && !super::product::only_plain()
}

/// Adds the sums of all slices up, in the order of slices, and waits until they are there. A lane's go to `results` from
/// `first` on: `counts` of them along two axes, the last one running fastest, `pitches` apart.
#[cube]
fn add_up(
    sums: &Array<f32>,
    results: &mut SharedMemory<f32>,
    first: u32,
    #[comptime] counts: [u32; 2],
    #[comptime] pitches: [u32; 2],
) {
    for slice in 0..SLICES {
        if UNIT_POS / LANES == slice {
            #[unroll]
            for i in 0..comptime!(counts[0] * counts[1]) {
                let at =
                    (first + comptime!(i / counts[1] * pitches[0] + i % counts[1] * pitches[1])) as usize;
                let mut sum = sums[comptime!(i as usize)];
                if slice > 0 {
                    sum += results[at];
                }
                results[at] = sum;
            }
        }
        sync_cube();
    }
}
