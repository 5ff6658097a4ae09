//! Copies between dtypes: with a factor, into a part of a larger tensor, through a dropout mask.
#![expect(
    clippy::collapsible_if,
    reason = "what is decided when a kernel is compiled stands apart from what it decides itself"
)]

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_tensor::DType;
use cubecl::prelude::*;

use super::tensor::{UNITS, array, columns, dims, elements, empty, empty_like, many, units};
use crate::dropout::{Dropout, Mask};

/// `source` in `dtype`: itself where it is already.
pub(crate) fn cast<R: CubeRuntime>(source: &CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    if source.dtype == dtype { source.clone() } else { scaled(source, 1.0, dtype) }
}

/// `factor · source` in `dtype`, rounded once.
pub(crate) fn scaled<R: CubeRuntime>(source: &CubeTensor<R>, factor: f32, dtype: DType) -> CubeTensor<R> {
    let target = empty(source, &dims(source), dtype);
    copy_all(&[Part { source, factor, offset: 0 }], &target);
    target
}

/// A tensor to be copied into a part of a larger one.
pub(crate) struct Part<'a, R: CubeRuntime> {
    pub(crate) source: &'a CubeTensor<R>,
    /// What it is multiplied by.
    pub(crate) factor: f32,
    /// The element of the target that its first one becomes.
    pub(crate) offset: usize,
}

/// Writes all of `parts`, which are of one dtype, to `target`, each number rounded once.
pub(crate) fn copy_all<R: CubeRuntime>(parts: &[Part<'_, R>], target: &CubeTensor<R>) {
    for together in parts.chunks(many(&target.client, 1)) {
        let argument = |part: &Part<'_, R>| {
            PartDataLaunch::new(
                array(part.source),
                elements(part.source) as u32,
                part.offset as u32,
                part.factor,
            )
        };
        let most = together.iter().map(|part| elements(part.source) as u32).max().unwrap_or(0);
        let (cubes, dim) = columns(most, together.len());
        // SAFETY: a unit stays below the elements of its part; callers leave room behind every offset.
        unsafe {
            copy_kernel::launch_unchecked::<R>(
                &target.client,
                cubes,
                dim,
                together.iter().map(argument).collect(),
                array(target),
                [together[0].source.dtype.into(), target.dtype.into()],
            );
        }
    }
}

/// A [`Part`] in a kernel.
#[derive(CubeType, CubeLaunch)]
struct PartData<S: Float> {
    data: Array<S>,
    count: u32,
    offset: u32,
    factor: f32,
}

#[cube(launch_unchecked)]
fn copy_kernel<S: Float, D: Float>(
    parts: &Sequence<PartData<S>>,
    target: &mut Array<D>,
    #[define(S, D)] _dtypes: [StorageType; 2],
) {
    #[unroll]
    for index in 0..parts.len() {
        if CUBE_POS_Y == index as u32 {
            let part = parts.index(index);
            let mut at = CUBE_POS_X * UNITS + UNIT_POS;
            while at < part.count {
                let value = f32::cast_from(part.data[at as usize]) * part.factor;
                target[(part.offset + at) as usize] = D::cast_from(value);
                at += CUBE_COUNT_X * UNITS;
            }
        }
    }
}

/// `dropout(x)`.
pub(crate) fn dropped<R: CubeRuntime>(x: &CubeTensor<R>, dropout: &Dropout) -> CubeTensor<R> {
    let y = empty_like(x);
    masked(x, dropout, &y, false);
    y
}

/// Adds `dropout(x)` to `sum`.
pub(crate) fn add_dropped<R: CubeRuntime>(x: &CubeTensor<R>, dropout: &Dropout, sum: &CubeTensor<R>) {
    masked(x, dropout, sum, true);
}

/// Elements that one unit masks: what one call of Philox gives bits for.
const BLOCK: usize = 4;

fn masked<R: CubeRuntime>(x: &CubeTensor<R>, dropout: &Dropout, y: &CubeTensor<R>, adds: bool) {
    let mask = Mask::new(dropout);
    let count = elements(x);
    let (cubes, dim) = units(count.div_ceil(BLOCK));
    // A probability that rounds to 0 or to 1 of 2³² drops nothing or everything.
    let below = mask.threshold.clamp(1, 1 << 32) - 1;
    // SAFETY: elements from `count` on are left alone.
    unsafe {
        dropout_kernel::launch_unchecked::<R>(
            &x.client,
            cubes,
            dim,
            array(x),
            array(y),
            count as u32,
            mask.key[0],
            mask.key[1],
            mask.tail[0],
            mask.tail[1],
            below as u32,
            mask.factor,
            mask.threshold > 0,
            adds,
            [x.dtype.into(), y.dtype.into()],
        );
    }
}

#[cube(launch_unchecked)]
fn dropout_kernel<S: Float, D: Float>(
    x: &Array<S>,
    y: &mut Array<D>,
    count: u32,
    key_0: u32,
    key_1: u32,
    tail_0: u32,
    tail_1: u32,
    dropped_up_to: u32,
    factor: f32,
    #[comptime] drops: bool,
    #[comptime] adds: bool,
    #[define(S, D)] _dtypes: [StorageType; 2],
) {
    let first = ABSOLUTE_POS as u32 * 4;
    if first < count {
        // As `dropout::philox` on the CPU; a tensor has fewer than 2³⁴ elements, so the block's number fits in a word.
        let mut c0 = ABSOLUTE_POS as u32;
        let mut c1 = 0u32;
        let mut c2 = tail_0;
        let mut c3 = tail_1;
        let mut k0 = key_0;
        let mut k1 = key_1;
        for _ in 0..10u32 {
            let left_high = u32::mul_hi(c0, 0xd251_1f53u32);
            let left_low = c0 * 0xd251_1f53u32;
            let right_high = u32::mul_hi(c2, 0xcd9e_8d57u32);
            let right_low = c2 * 0xcd9e_8d57u32;
            c0 = right_high ^ c1 ^ k0;
            c1 = right_low;
            c2 = left_high ^ c3 ^ k1;
            c3 = left_low;
            k0 += 0x9e37_79b9u32;
            k1 += 0xbb67_ae85u32;
        }
        let mut words = Array::<u32>::new(4usize);
        words[0] = c0;
        words[1] = c1;
        words[2] = c2;
        words[3] = c3;
        #[unroll]
        for lane in 0..4usize {
            let at = first as usize + lane;
            if at < count as usize {
                let mut kept = factor;
                if comptime!(drops) {
                    if words[lane] <= dropped_up_to {
                        kept = 0.0f32;
                    }
                }
                let mut value = f32::cast_from(x[at]) * kept;
                if comptime!(adds) {
                    value += f32::cast_from(y[at]);
                }
                y[at] = D::cast_from(value);
            }
        }
    }
}
