//! The matrix product that takes every shape, operand and dtype: for what none of cubek's tiled routines accepts.
//!
//! A cube of 16 × 16 units makes a tile of the result, a unit one element of it. Tiles of both operands pass through
//! shared memory in f32, element by element, so no size must be a multiple of any other. Each multiplication reads two
//! words of shared memory, where the tiled routines work out of registers: a last resort, right rather than fast.

use cubecl::prelude::*;

use super::operand::{Checks, Input, Matrix, read};
use super::sink::{Sink, write_at};

/// Rows and columns of a cube's tile of the result, and steps of a tile along the reduction.
pub(super) const TILE: u32 = 16;

/// Elements of a tile.
const AREA: usize = (TILE * TILE) as usize;

/// `result = lhs · rhs`, operands and result as vectors of one element; one cube of `TILE × TILE` units for each tile.
#[cube(launch_unchecked)]
pub(super) fn plain_product_kernel<E: Float, O: Float>(
    lhs: &Input<E>,
    rhs: &Input<E>,
    result: &mut Sink<O>,
    #[define(E, O)] _dtypes: [StorageType; 2],
) {
    let (rows, columns, reduction) = (result.rows, result.columns, lhs.columns);
    let across = columns.div_ceil(TILE);
    let tile = CUBE_POS as u32;
    if tile >= across * rows.div_ceil(TILE) {
        terminate!();
    }
    let row = tile / across * TILE + UNIT_POS_Y;
    let column = tile % across * TILE + UNIT_POS_X;
    let lhs = Matrix::<E>::new(lhs, comptime!(Checks::ALL));
    let rhs = Matrix::<E>::new(rhs, comptime!(Checks::ALL));
    let mut left = SharedMemory::<f32>::new(AREA);
    let mut right = SharedMemory::<f32>::new(AREA);
    let own = (UNIT_POS_Y * TILE + UNIT_POS_X) as usize;
    let mut sum = 0.0f32;
    for step in 0..reduction.div_ceil(TILE) {
        let (x, y) = (step * TILE + UNIT_POS_X, step * TILE + UNIT_POS_Y);
        sync_cube();
        left[own] = element::<E>(&lhs, row, x, rows, reduction);
        right[own] = element::<E>(&rhs, y, column, reduction, columns);
        sync_cube();
        for along in 0..TILE {
            sum += left[(UNIT_POS_Y * TILE + along) as usize] * right[(along * TILE + UNIT_POS_X) as usize];
        }
    }
    if row < rows && column < columns {
        write_at::<O>(result, (0usize.runtime(), row, column), O::cast_from(sum));
    }
}

/// An element of an operand; 0 outside it.
#[cube]
fn element<E: Float>(matrix: &Matrix<E>, row: u32, column: u32, rows: u32, columns: u32) -> f32 {
    let mut value = 0.0f32;
    if row < rows && column < columns {
        value = f32::cast_from(read::<E>(matrix, row, column));
    }
    value
}
