//! Copies between dtypes: with a factor, into a part of a larger tensor, through a dropout mask.
#![expect(
    clippy::collapsible_if,
    reason = "what is decided when a kernel is compiled stands apart from what it decides itself"
)]

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_tensor::DType;
use cubecl::prelude::*;

use super::tensor::{
    UNITS, array, array_of, columns, dims, elements, empty, empty_like, many, units, vector_size,
};
use crate::dropout::{Dropout, Mask};

/// `source` in `dtype`: itself where it is already.
pub(crate) fn cast<R: CubeRuntime>(source: &CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    if source.dtype == dtype { source.clone() } else { scaled(source, 1.0, dtype) }
}

/// `factor · source` in `dtype`, rounded once.
pub(crate) fn scaled<R: CubeRuntime>(source: &CubeTensor<R>, factor: f32, dtype: DType) -> CubeTensor<R> {
    let target = empty(source, &dims(source), dtype);
    copy_all(&[Part { source, factor, offset: 0, room: None }], &target);
    target
}

/// A tensor to be copied into a part of a larger one.
pub(crate) struct Part<'a, R: CubeRuntime> {
    pub(crate) source: &'a CubeTensor<R>,
    /// What it is multiplied by.
    pub(crate) factor: f32,
    /// The element of the target that its first one becomes.
    pub(crate) offset: usize,
    /// Rows and columns of the place that a matrix of fewer takes up; zeros fill the rest. `None`: as many as it has.
    pub(crate) room: Option<[usize; 2]>,
}

impl<R: CubeRuntime> Part<'_, R> {
    /// Columns of the source and of its place.
    fn widths(&self) -> [usize; 2] {
        let width = dims(self.source).last().copied().unwrap_or(1);
        [width, self.room.map_or(width, |room| room[1])]
    }

    /// Elements that are written.
    fn count(&self) -> usize {
        self.room.map_or_else(|| elements(self.source), |[rows, columns]| rows * columns)
    }
}

/// Writes all of `parts`, which are of one dtype, to `target`, each number rounded once.
pub(crate) fn copy_all<R: CubeRuntime>(parts: &[Part<'_, R>], target: &CubeTensor<R>) {
    let Some(Part { source: first, .. }) = parts.first() else { return };
    let pads = parts.iter().any(|part| part.room.is_some());
    let lengths = |part: &Part<'_, R>| {
        let rows = if pads { part.widths() } else { [part.count(); 2] };
        [part.offset, rows[0], rows[1]]
    };
    let lengths: Vec<_> = parts.iter().flat_map(lengths).collect();
    let vector = [first.dtype, target.dtype].map(|dtype| vector_size(&target.client, dtype, &lengths));
    let vector = vector[0].min(vector[1]);
    for together in parts.chunks(many(&target.client, 1)) {
        let vectors = |numbers: usize| (numbers / vector) as u32;
        let argument = |part: &Part<'_, R>| {
            let [width, pitch] = part.widths().map(vectors);
            let (count, filled) = (vectors(part.count()), vectors(elements(part.source)));
            let offset = vectors(part.offset);
            PartDataLaunch::new(
                array_of(part.source, vector),
                count,
                offset,
                part.factor,
                filled,
                width,
                pitch,
            )
        };
        let most = together.iter().map(|part| vectors(part.count())).max().unwrap_or(0);
        let (cubes, dim) = columns(most, together.len());
        // SAFETY: a unit stays below the elements of its part; callers leave room behind every offset.
        unsafe {
            copy_kernel::launch_unchecked::<R>(
                &target.client,
                cubes,
                dim,
                vector,
                together.iter().map(argument).collect(),
                array_of(target, vector),
                pads,
                [first.dtype.into(), target.dtype.into()],
            );
        }
    }
}

/// A [`Part`] in a kernel, in vectors.
#[derive(CubeType, CubeLaunch)]
struct PartData<S: CubePrimitive> {
    data: Array<S>,
    count: u32,
    offset: u32,
    factor: f32,
    /// Of the source: its length, that of a row, and that of a row of its place; where parts are padded.
    filled: u32,
    width: u32,
    pitch: u32,
}

#[cube(launch_unchecked)]
fn copy_kernel<S: Float, D: Float, N: Size>(
    parts: &Sequence<PartData<Vector<S, N>>>,
    target: &mut Array<Vector<D, N>>,
    #[comptime] pads: bool,
    #[define(S, D)] _dtypes: [StorageType; 2],
) {
    #[unroll]
    for index in 0..parts.len() {
        if CUBE_POS_Y == index as u32 {
            let part = parts.index(index);
            let mut at = CUBE_POS_X * UNITS + UNIT_POS;
            while at < part.count {
                let mut value = Vector::<f32, N>::new(0.0f32);
                if comptime!(pads) {
                    let column = at % part.pitch;
                    let from = at / part.pitch * part.width + column;
                    if column < part.width && from < part.filled {
                        value = Vector::cast_from(part.data[from as usize]);
                    }
                } else {
                    value = Vector::cast_from(part.data[at as usize]);
                }
                target[(part.offset + at) as usize] = Vector::cast_from(value * Vector::new(part.factor));
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
