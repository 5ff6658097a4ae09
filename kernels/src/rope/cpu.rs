//! Rotary embedding on the CPU, a run of tokens per task.

use burn_flex::Flex;
use burn_tensor::{Int, Tensor};

use super::{Direction, Pairs, RopeOps, RotaryTable};
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{parallel, tensor, vectorized};

impl RopeOps for Flex {
    fn rope<const N: usize>(
        x: [Tensor<Self, 3>; N],
        table: &RotaryTable<Self>,
        position_ids: &Tensor<Self, 1, Int>,
        direction: Direction,
    ) -> [Tensor<Self, 3>; N] {
        x.map(|x| rotate(x, table, position_ids, direction))
    }
}

fn rotate(
    x: Tensor<Flex, 3>,
    table: &RotaryTable<Flex>,
    position_ids: &Tensor<Flex, 1, Int>,
    direction: Direction,
) -> Tensor<Flex, 3> {
    let [_, heads, head_dim] = x.dims();
    let (width, pairs) = (table.cos.dims()[1], table.pairs);
    let (cos, sin) = (tensor::primitive(table.cos.clone()), tensor::primitive(table.sin.clone()));
    let (cos, sin) = (tensor::floats(&cos), tensor::floats(&sin));
    let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
    let position_ids = tensor::integers(position_ids);
    let mut x = tensor::owned(x);
    with_float!(x.dtype(), T => {
        let x = x.storage_mut::<T>();
        let tokens = parallel::rows_per_task(heads * head_dim);
        let chunk = (tokens * heads * head_dim).max(1);
        let work = 2 * x.len();
        let tasks = x.chunks_mut(chunk).zip(position_ids.chunks(tokens)).collect();
        parallel::for_each(tasks, work, |(y, position_ids)| {
            for (y, position) in y.chunks_exact_mut((heads * head_dim).max(1)).zip(position_ids) {
                let row = *position as usize * width;
                let (cos, sin) = (&cos[row..row + width], &sin[row..row + width]);
                match pairs {
                    Pairs::Halves => rotate_halves::<T>(y, head_dim, cos, sin, sign),
                    Pairs::Neighbours => rotate_neighbours::<T>(y, head_dim, cos, sin, sign),
                }
            }
        });
    });
    tensor::from_flex(x)
}

vectorized! {
    fn rotate_halves<T: Scalar>(token: &mut [T], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) {
        let width = cos.len();
        for head in token.chunks_exact_mut(head_dim) {
            let (left, right) = head[..2 * width].split_at_mut(width);
            for (((left, right), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                let (x, z, sin) = (left.to_f32(), right.to_f32(), sign * sin);
                *left = T::from_f32(x * cos - z * sin);
                *right = T::from_f32(z * cos + x * sin);
            }
        }
    }

    fn rotate_neighbours<T: Scalar>(token: &mut [T], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) {
        let width = cos.len();
        for head in token.chunks_exact_mut(head_dim) {
            for ((pair, cos), sin) in head[..2 * width].chunks_exact_mut(2).zip(cos).zip(sin) {
                let (x, z, sin) = (pair[0].to_f32(), pair[1].to_f32(), sign * sin);
                pair[0] = T::from_f32(x * cos - z * sin);
                pair[1] = T::from_f32(z * cos + x * sin);
            }
        }
    }
}
