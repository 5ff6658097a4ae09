//! Rotary embedding on a GPU: one unit for each pair of dimensions, and for each that passes through.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Direction;
use crate::cube::tensor::{array, dims, in_place, units};

/// [`super::rope`].
pub(crate) fn rotate<R: CubeRuntime>(
    x: CubeTensor<R>,
    cos: &CubeTensor<R>,
    sin: &CubeTensor<R>,
    position_ids: &CubeTensor<R>,
    direction: Direction,
) -> CubeTensor<R> {
    let y = in_place(&x);
    let shape = dims(&x);
    let (heads, head_dim, width) = (shape[1], shape[2], dims(cos)[1]);
    // A unit takes dimension `i < width` with its partner, or one dimension that passes through.
    let lanes = head_dim - width;
    let count = shape[0] * heads * lanes;
    let (cubes, dim) = units(count);
    // SAFETY: units from `count` on do nothing, and every position was found to be inside the table.
    unsafe {
        rope_kernel::launch_unchecked::<R>(
            &x.client,
            cubes,
            dim,
            array(&x),
            array(cos),
            array(sin),
            array(position_ids),
            array(&y),
            count as u32,
            heads as u32,
            head_dim as u32,
            width as u32,
            if direction == Direction::Forward { 1.0 } else { -1.0 },
            [x.dtype.into(), position_ids.dtype.into()],
        );
    }
    y
}

#[cube(launch_unchecked)]
fn rope_kernel<F: Float, P: Int>(
    x: &Array<F>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    position_ids: &Array<P>,
    y: &mut Array<F>,
    count: u32,
    heads: u32,
    head_dim: u32,
    width: u32,
    sign: f32,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let lanes = head_dim - width;
    let unit = ABSOLUTE_POS as u32;
    let lane = unit % lanes;
    let head = unit / lanes;
    let start = head as usize * head_dim as usize;
    if lane < width {
        let position = u32::cast_from(position_ids[(head / heads) as usize]);
        let at = position as usize * width as usize + lane as usize;
        let (c, s) = (cos[at], sin[at] * sign);
        let first = start + lane as usize;
        let second = first + width as usize;
        let (a, b) = (f32::cast_from(x[first]), f32::cast_from(x[second]));
        y[first] = F::cast_from(a * c - b * s);
        y[second] = F::cast_from(b * c + a * s);
    } else {
        let at = start + (lane + width) as usize;
        y[at] = x[at];
    }
}
