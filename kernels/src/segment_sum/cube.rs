//! Sums over segments on a GPU: one cube for each.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};
use cubecl::prelude::*;

use super::SegmentOps;
use crate::cube::reduce::cube_sum;
use crate::cube::tensor::{array, cubes, empty, float, wrap};

/// Units that share a segment.
const UNITS: u32 = 64;

impl<R, F, I, T> SegmentOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn segment_sum(rows: &Tensor<Self, 1>, offsets: &[u32]) -> Tensor<Self, 1> {
        let rows = float(rows);
        let segments = offsets.len() - 1;
        let sums = empty(&rows, &[segments], DType::F32);
        let ends = rows.client.create_from_slice(bytemuck::cast_slice(offsets));
        // SAFETY: the offsets were found to stay within the rows, and cubes beyond the segments do nothing.
        unsafe {
            segment_sum_kernel::launch_unchecked::<R>(
                &rows.client,
                cubes(segments as u32),
                CubeDim::new_1d(UNITS),
                array(&rows),
                ArrayArg::from_raw_parts(ends, offsets.len()),
                array(&sums),
                segments as u32,
            );
        }
        wrap(sums)
    }
}

#[cube(launch_unchecked)]
fn segment_sum_kernel(rows: &Array<f32>, offsets: &Array<u32>, sums: &mut Array<f32>, segments: u32) {
    if CUBE_POS >= segments as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(64usize);
    let end = offsets[CUBE_POS + 1];
    let mut sum = 0.0f32;
    let mut at = offsets[CUBE_POS] + UNIT_POS;
    while at < end {
        sum += rows[at as usize];
        at += UNITS;
    }
    let sum = cube_sum(sum, &mut shared, UNITS);
    if UNIT_POS == 0 {
        sums[CUBE_POS] = sum;
    }
}
