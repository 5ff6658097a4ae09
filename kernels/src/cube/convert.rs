//! Copies between dtypes: with a factor, into a part of a larger tensor, through a dropout mask.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_tensor::DType;
use cubecl::prelude::*;

use super::mask::{self, MaskData, kept, words};
use super::tensor::{
    UNITS, array, array_of, columns, dims, elements, empty, empty_like, many, units, vector_size,
};
use crate::dropout::Dropout;

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
    let count = elements(x);
    let (cubes, dim) = units(count.div_ceil(BLOCK));
    // SAFETY: elements from `count` on are left alone.
    unsafe {
        dropout_kernel::launch_unchecked::<R>(
            &x.client,
            cubes,
            dim,
            array(x),
            array(y),
            count as u32,
            mask::argument(Some(dropout)),
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
    mask: &MaskData,
    #[comptime] adds: bool,
    #[define(S, D)] _dtypes: [StorageType; 2],
) {
    let first = ABSOLUTE_POS as u32 * 4;
    if first < count {
        let words = words(ABSOLUTE_POS as u32, mask);
        #[unroll]
        for lane in 0..4usize {
            let at = first as usize + lane;
            if at < count as usize {
                let mut value = f32::cast_from(x[at]) * kept(words[lane], mask);
                if comptime!(adds) {
                    value += f32::cast_from(y[at]);
                }
                y[at] = D::cast_from(value);
            }
        }
    }
}
