//! What a matrix product reads, as cubek's kernels see it: operands that are dense or NF4, carried on along the reduction
//! by a second matrix. What it writes is `sink`.
//!
//! [`Matrix`] implements CubeCL's view operations, so a tiled product loads its tiles through [`Matrix::read`]: an NF4
//! weight is dequantized between global and shared memory, and the LoRA product is the same loop carried on from
//! `[x | W]` into `[t | B]`. A read is one vector along the rows of what is stored. Vector sizes divide those rows, so
//! a vector crosses neither an NF4 block, nor a row, nor the border to the tail.
//!
//! Tiles may reach beyond an operand. Behind the end of the reduction there are zeros, which are not read: a load that is
//! skipped costs a predicate, where one that is thrown away costs a selection for each number. Beside the operand, where
//! no sum is written, the last line is read once more. Along a side that whole tiles divide, nothing is asked
//! ([`Checks`]).

use cubecl::prelude::barrier::BarrierExpand;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::{Layout, LayoutExpand};
use cubecl::std::tensor::{ViewOperations, ViewOperationsExpand};
use cubek::matmul::components::global::memory::GlobalLayoutConfig;
use cubek::matmul::launch::BatchedCoords;

use crate::nf4::cube::{Nf4Data, dequantize_vector};

/// A row-major matrix in memory, or a part of one.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Dense<E: CubePrimitive> {
    data: Array<E>,
    /// Elements before the first.
    offset: u32,
    /// Elements from one row to the next.
    stride: u32,
}

/// The `#[cube]` expansion needs `Clone`; values are cloned inside kernels alone.
impl<E: CubePrimitive> Clone for Dense<E> {
    fn clone(&self) -> Self {
        unreachable!("only expanded")
    }
}

/// An operand of a product, as it is launched.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Input<E: CubePrimitive> {
    /// This or `nf4` is there.
    dense: ComptimeOption<Dense<E>>,
    nf4: ComptimeOption<Nf4Data>,
    tail: ComptimeOption<Dense<E>>,
    /// Where along the reduction the tail begins.
    border: u32,
    /// Rows and columns of the operand, tail included.
    pub(super) rows: u32,
    pub(super) columns: u32,
    /// Whether the operand is the transpose of what is stored; vectors then lie down its columns.
    #[cube(comptime)]
    transposed: bool,
    /// Whether the reduction runs over the rows (the right operand) or the columns (the left one).
    #[cube(comptime)]
    reduces_rows: bool,
    #[cube(comptime)]
    vector_size: usize,
}

/// Along which sides of an operand or a result tiles may reach beyond it.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) struct Checks {
    rows: bool,
    columns: bool,
}

impl From<GlobalLayoutConfig> for Checks {
    fn from(config: GlobalLayoutConfig) -> Self {
        Self { rows: config.check_row_bounds, columns: config.check_col_bounds }
    }
}

impl Checks {
    pub(super) const ALL: Self = Self { rows: true, columns: true };
    const NONE: Self = Self { rows: false, columns: false };
}

/// An operand of a product inside its kernel.
#[derive(CubeType)]
pub(crate) struct Matrix<E: CubePrimitive> {
    dense: ComptimeOption<Dense<E>>,
    nf4: ComptimeOption<Nf4Data>,
    tail: ComptimeOption<Dense<E>>,
    border: u32,
    rows: u32,
    columns: u32,
    /// The 16 levels of an NF4 operand.
    levels: SharedMemory<f32>,
    #[cube(comptime)]
    transposed: bool,
    #[cube(comptime)]
    reduces_rows: bool,
    #[cube(comptime)]
    vector_size: usize,
    #[cube(comptime)]
    checks: Checks,
}

#[cube]
impl<E: CubePrimitive> Matrix<E> {
    /// Puts the codebook of an NF4 operand into shared memory. All units of the cube call it.
    pub(crate) fn new(input: &Input<E>, #[comptime] checks: Checks) -> Self {
        let mut levels = SharedMemory::<f32>::new(16usize);
        #[comptime]
        match &input.nf4 {
            ComptimeOption::Some(nf4) => nf4.load_levels(&mut levels),
            ComptimeOption::None => {}
        }
        Matrix::<E> {
            dense: input.dense.clone(),
            nf4: input.nf4.clone(),
            tail: input.tail.clone(),
            border: input.border,
            rows: input.rows,
            columns: input.columns,
            levels,
            transposed: input.transposed,
            reduces_rows: input.reduces_rows,
            vector_size: input.vector_size,
            checks,
        }
    }
}

/// The vector of a stored matrix at (row, column) of the operand.
#[cube]
fn read_dense<E: CubePrimitive>(
    matrix: &Dense<E>,
    row: u32,
    column: u32,
    #[comptime] transposed: bool,
    #[comptime] vector_size: usize,
) -> E {
    let (line, within) = if comptime!(transposed) { (column, row) } else { (row, column) };
    // Divided apart: where the line begins does not change along a loop that goes through it.
    let size = comptime!(vector_size as u32);
    matrix.data[((matrix.offset + line * matrix.stride) / size + within / size) as usize]
}

#[cube]
fn read_head<E: CubePrimitive>(matrix: &Matrix<E>, row: u32, column: u32) -> E {
    #[comptime]
    match &matrix.nf4 {
        ComptimeOption::Some(nf4) => dequantize_vector::<E>(nf4, &matrix.levels, row, column),
        ComptimeOption::None =>
        {
            #[comptime]
            match &matrix.dense {
                ComptimeOption::Some(dense) => {
                    read_dense::<E>(dense, row, column, matrix.transposed, matrix.vector_size)
                }
                ComptimeOption::None => E::cast_from(0u32),
            }
        }
    }
}

/// The vector at (row, column) of an operand, which is inside it.
#[cube]
pub(super) fn read<E: CubePrimitive>(matrix: &Matrix<E>, row: u32, column: u32) -> E {
    #[comptime]
    match &matrix.tail {
        ComptimeOption::Some(tail) => {
            let along = if comptime!(matrix.reduces_rows) { row } else { column };
            if along < matrix.border {
                read_head::<E>(matrix, row, column)
            } else {
                read_tail::<E>(matrix, tail, row, column)
            }
        }
        ComptimeOption::None => read_head::<E>(matrix, row, column),
    }
}

#[cube]
fn read_tail<E: CubePrimitive>(matrix: &Matrix<E>, tail: &Dense<E>, row: u32, column: u32) -> E {
    let border = matrix.border;
    let (row, column) =
        if comptime!(matrix.reduces_rows) { (row - border, column) } else { (row, column - border) };
    read_dense::<E>(tail, row, column, matrix.transposed, matrix.vector_size)
}

/// The vector at a position of an operand, which may lie outside. Behind the end of the reduction there are zeros; beside
/// the operand anything, for it only goes into sums that are not written.
#[cube]
fn read_checked<E: CubePrimitive>(matrix: &Matrix<E>, position: BatchedCoords) -> E {
    let (_, row, column) = position;
    let lanes = comptime!(matrix.vector_size as u32);
    let is_right = comptime!(matrix.reduces_rows);
    let row = if comptime!(!is_right && matrix.checks.rows) {
        min(row, matrix.rows - comptime!(if matrix.transposed { lanes } else { 1 }))
    } else {
        row
    };
    let column = if comptime!(is_right && matrix.checks.columns) {
        min(column, matrix.columns - comptime!(if matrix.transposed { 1 } else { lanes }))
    } else {
        column
    };
    let ends = comptime!(if is_right { matrix.checks.rows } else { matrix.checks.columns });
    let bytes = E::type_size().comptime();
    if comptime!(!ends && matrix.tail.is_none()) {
        read_head::<E>(matrix, row, column)
    } else if comptime!(bytes.is_multiple_of(4)) {
        let size!(W) = comptime!(bytes / 4);
        read_or_zero::<E, Vector<u32, W>>(matrix, row, column, true)
    } else {
        read_or_zero::<E, E>(matrix, row, column, false)
    }
}

/// The vector at (row, column) of an operand; zeros behind the end of the reduction. It is held as `H`: words, where it
/// is made of some, lest compilers select each of its 16-bit numbers by itself.
#[cube]
fn read_or_zero<E: CubePrimitive, H: CubePrimitive>(
    matrix: &Matrix<E>,
    row: u32,
    column: u32,
    #[comptime] is_words: bool,
) -> E {
    let mut held = H::cast_from(0u32);
    let (along, end) =
        if comptime!(matrix.reduces_rows) { (row, matrix.rows) } else { (column, matrix.columns) };
    #[comptime]
    match &matrix.tail {
        ComptimeOption::Some(tail) => {
            let is_head = along < matrix.border;
            if is_head {
                held = rewritten::<E, H>(read_head::<E>(matrix, row, column), is_words);
            }
            if !is_head && along < end {
                held = rewritten::<E, H>(read_tail::<E>(matrix, tail, row, column), is_words);
            }
        }
        ComptimeOption::None => {
            if along < end {
                held = rewritten::<E, H>(read_head::<E>(matrix, row, column), is_words);
            }
        }
    }
    rewritten::<H, E>(held, is_words)
}

/// The same bits as another type, or the same type.
#[cube]
fn rewritten<A: CubePrimitive, B: CubePrimitive>(value: A, #[comptime] is_other: bool) -> B {
    if comptime!(is_other) { B::reinterpret(value) } else { B::cast_from(value) }
}

/// How far an operand or a result reaches. An operand's positions are judged where it is read.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Extent {
    pub(super) rows: u32,
    pub(super) columns: u32,
    #[cube(comptime)]
    pub(super) checks: Checks,
}

#[cube]
impl Extent {
    pub(crate) fn of<E: CubePrimitive>(input: &Input<E>) -> Self {
        Extent { rows: input.rows, columns: input.columns, checks: comptime!(Checks::NONE) }
    }
}

#[cube]
impl Layout for Extent {
    type Coordinates = BatchedCoords;
    type SourceCoordinates = BatchedCoords;

    fn to_source_pos(&self, position: Self::Coordinates) -> BatchedCoords {
        position
    }

    fn to_source_pos_checked(&self, position: Self::Coordinates) -> (BatchedCoords, bool) {
        (position, self.is_in_bounds(position))
    }

    fn shape(&self) -> Self::Coordinates {
        (1usize, self.rows, self.columns)
    }

    fn is_in_bounds(&self, position: Self::Coordinates) -> bool {
        let (_, row, column) = position;
        let in_rows = if comptime!(self.checks.rows) { row < self.rows } else { true.runtime() };
        let in_columns = if comptime!(self.checks.columns) { column < self.columns } else { true.runtime() };
        in_rows && in_columns
    }
}

impl<E: CubePrimitive> Vectorized for Matrix<E> {}
impl<E: CubePrimitive> VectorizedExpand for MatrixExpand<E> {
    fn vector_size(&self) -> usize {
        self.vector_size
    }
}

impl<E: CubePrimitive> ViewOperations<E, BatchedCoords> for Matrix<E> {}

pub(super) type Position = <BatchedCoords as CubeType>::ExpandType;

impl<E: CubePrimitive> ViewOperationsExpand<E, BatchedCoords> for MatrixExpand<E> {
    fn __expand_read_method(&self, scope: &mut Scope, position: Position) -> E::ExpandType {
        read_checked::expand::<E>(scope, self.clone(), position)
    }

    fn __expand_read_checked_method(&self, scope: &mut Scope, position: Position) -> E::ExpandType {
        read_checked::expand::<E>(scope, self.clone(), position)
    }

    fn __expand_read_masked_method(
        &self,
        _scope: &mut Scope,
        _position: Position,
        _mask: E::ExpandType,
    ) -> E::ExpandType {
        unreachable!("the routines in use have zeros outside")
    }

    fn __expand_read_unchecked_method(&self, _scope: &mut Scope, _position: Position) -> E::ExpandType {
        unreachable!("the routines in use read with checks, as far as those are needed")
    }

    fn __expand_to_linear_slice_method(
        &self,
        _scope: &mut Scope,
        _position: Position,
        _end: Position,
    ) -> SliceExpand<E, ReadOnly> {
        unreachable!("the routines in use read vectors")
    }

    fn __expand_tensor_map_load_method(
        &self,
        _scope: &mut Scope,
        _barrier: BarrierExpand,
        _memory: SliceExpand<E, ReadWrite>,
        _position: Position,
    ) {
        unreachable!("the routines in use read vectors")
    }

    fn __expand_shape_method(&self, _scope: &mut Scope) -> Position {
        unreachable!("the layout above it knows the shape")
    }

    fn __expand_is_in_bounds_method(&self, _scope: &mut Scope, _position: Position) -> NativeExpand<bool> {
        true.into()
    }
}
