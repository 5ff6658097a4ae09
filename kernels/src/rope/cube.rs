//! Rotary embedding on a GPU: one unit for each vector of pairs of dimensions, and for each of dimensions that pass through;
//! a column of cubes for each tensor. Neighbours that make a pair are taken one pair at a time.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};
use cubecl::prelude::*;

use super::{Direction, Pairs, RopeOps, RotaryTable};
use crate::cube::tensor::{
    UNITS, array, array_of, columns, dims, float, in_place, int, into_float, vector_size, wrap,
};

impl<R, F, I, T> RopeOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn rope<const N: usize>(
        x: [Tensor<Self, 3>; N],
        table: &RotaryTable<Self>,
        position_ids: &Tensor<Self, 1, burn_tensor::Int>,
        direction: Direction,
    ) -> [Tensor<Self, 3>; N] {
        let (cos, sin) = (float(&table.cos), float(&table.sin));
        let strides = strides(table.pairs, table.cos.dims()[1]);
        rotate(x.map(into_float), &cos, &sin, strides, &int(position_ids), direction).map(wrap)
    }
}

/// From the first pair's first dimension to the second pair's, and from a pair's first dimension to its second.
fn strides(pairs: Pairs, width: usize) -> (usize, usize) {
    match pairs {
        Pairs::Halves => (1, width),
        Pairs::Neighbours => (2, 1),
    }
}

fn rotate<R: CubeRuntime, const N: usize>(
    x: [CubeTensor<R>; N],
    cos: &CubeTensor<R>,
    sin: &CubeTensor<R>,
    (step, partner): (usize, usize),
    position_ids: &CubeTensor<R>,
    direction: Direction,
) -> [CubeTensor<R>; N] {
    let y = x.each_ref().map(in_place);
    let Some(like) = x.first() else { return y };
    let (head_dim, width) = (dims(like)[2], dims(cos)[1]);
    let most = |dtype: DType| vector_size(&like.client, dtype, &[head_dim, width]);
    let vector = if step == 1 { most(like.dtype).min(most(cos.dtype)) } else { 1 };
    // A unit takes vector `i < width` of pairs, or one of dimensions that pass through.
    let [head_dim, width, partner] = [head_dim, width, partner].map(|length| length / vector);
    let lanes = head_dim - width;
    let counts = x.each_ref().map(|x| (dims(x)[0] * dims(x)[1] * lanes) as u32);
    let argument = |((x, y), count): ((&CubeTensor<R>, &CubeTensor<R>), u32)| {
        RotatedLaunch::new(array_of(x, vector), array_of(y, vector), count, dims(x)[1] as u32)
    };
    let (cubes, dim) = columns(counts.into_iter().max().unwrap_or(0), N);
    // SAFETY: a unit stays below the count of its tensor, and every position was found to be inside the table.
    unsafe {
        rope_kernel::launch_unchecked::<R>(
            &like.client,
            cubes,
            dim,
            vector,
            x.iter().zip(&y).zip(counts).map(argument).collect(),
            array_of(cos, vector),
            array_of(sin, vector),
            array(position_ids),
            head_dim as u32,
            width as u32,
            step as u32,
            partner as u32,
            if direction == Direction::Forward { 1.0 } else { -1.0 },
            [like.dtype.into(), position_ids.dtype.into()],
        );
    }
    y
}

/// A tensor being rotated, in a kernel.
#[derive(CubeType, CubeLaunch)]
struct Rotated<F: CubePrimitive> {
    x: Array<F>,
    y: Array<F>,
    /// Units that it takes, each a vector.
    count: u32,
    heads: u32,
}

#[cube(launch_unchecked)]
fn rope_kernel<F: Float, P: Int, N: Size>(
    tensors: &mut Sequence<Rotated<Vector<F, N>>>,
    cos: &Array<Vector<f32, N>>,
    sin: &Array<Vector<f32, N>>,
    position_ids: &Array<P>,
    head_dim: u32,
    width: u32,
    step: u32,
    partner: u32,
    sign: f32,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    let lanes = head_dim - width;
    #[unroll]
    for index in 0..tensors.len() {
        if CUBE_POS_Y == index as u32 {
            let one = tensors.index_mut(index);
            let mut unit = CUBE_POS_X * UNITS + UNIT_POS;
            while unit < one.count {
                let lane = unit % lanes;
                let head = unit / lanes;
                let start = head as usize * head_dim as usize;
                if lane < width {
                    let position = u32::cast_from(position_ids[(head / one.heads) as usize]);
                    let at = position as usize * width as usize + lane as usize;
                    let (cosines, sines) = (cos[at], sin[at]);
                    let first = start + (lane * step) as usize;
                    let second = first + partner as usize;
                    let (ones, others) = (one.x[first], one.x[second]);
                    let mut p = Vector::<F, N>::empty();
                    let mut q = Vector::<F, N>::empty();
                    #[unroll]
                    for i in 0..p.vector_size() {
                        let (c, s) = (cosines[i], sines[i] * sign);
                        let (a, b) = (f32::cast_from(ones[i]), f32::cast_from(others[i]));
                        p[i] = F::cast_from(a * c - b * s);
                        q[i] = F::cast_from(b * c + a * s);
                    }
                    one.y[first] = p;
                    one.y[second] = q;
                } else {
                    let at = start + (lane + width) as usize;
                    one.y[at] = one.x[at];
                }
                unit += CUBE_COUNT_X * UNITS;
            }
        }
    }
}
