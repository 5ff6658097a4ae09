//! What a matrix product reads and writes, as cubek's kernels see it: operands that are dense or NF4, carried on along
//! the reduction by a second matrix, and a result that takes bias, residual and a factor with it.
//!
//! [`Matrix`] and [`Sink`] implement CubeCL's view operations, so a tiled product loads its tiles through
//! [`Matrix::read`]: an NF4 weight is dequantized between global and shared memory, and the LoRA product is the same
//! loop carried on from `[x | W]` into `[t | B]`. A read is one vector along the rows of what is stored. Vector sizes
//! divide those rows, so a vector crosses neither an NF4 block, nor a row, nor the border to the tail.

use cubecl::prelude::barrier::BarrierExpand;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::{Layout, LayoutExpand};
use cubecl::std::tensor::{ViewOperations, ViewOperationsExpand, ViewOperationsMut, ViewOperationsMutExpand};
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

/// An operand of a product inside its kernel.
#[derive(CubeType)]
pub(crate) struct Matrix<E: CubePrimitive> {
    dense: ComptimeOption<Dense<E>>,
    nf4: ComptimeOption<Nf4Data>,
    tail: ComptimeOption<Dense<E>>,
    border: u32,
    /// The 16 levels of an NF4 operand.
    levels: SharedMemory<f32>,
    #[cube(comptime)]
    transposed: bool,
    #[cube(comptime)]
    reduces_rows: bool,
    #[cube(comptime)]
    vector_size: usize,
}

#[cube]
impl<E: CubePrimitive> Matrix<E> {
    /// Puts the codebook of an NF4 operand into shared memory. All units of the cube call it.
    pub(crate) fn new(input: &Input<E>) -> Self {
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
            levels,
            transposed: input.transposed,
            reduces_rows: input.reduces_rows,
            vector_size: input.vector_size,
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
    let element = (matrix.offset + line * matrix.stride + within) as usize;
    matrix.data[element / vector_size]
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
            let border = matrix.border;
            if along < border {
                read_head::<E>(matrix, row, column)
            } else if comptime!(matrix.reduces_rows) {
                read_dense::<E>(tail, row - border, column, matrix.transposed, matrix.vector_size)
            } else {
                read_dense::<E>(tail, row, column - border, matrix.transposed, matrix.vector_size)
            }
        }
        ComptimeOption::None => read_head::<E>(matrix, row, column),
    }
}

#[cube]
fn read_at<E: CubePrimitive>(matrix: &Matrix<E>, position: BatchedCoords) -> E {
    let (_, row, column) = position;
    read::<E>(matrix, row, column)
}

/// The extent of a matrix: positions outside are moved to the last vector inside, and said to be outside.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Extent {
    rows: u32,
    columns: u32,
    /// Vectors lie down columns.
    #[cube(comptime)]
    vertical: bool,
    #[cube(comptime)]
    vector_size: usize,
}

#[cube]
impl Extent {
    pub(crate) fn new(
        rows: u32,
        columns: u32,
        #[comptime] vertical: bool,
        #[comptime] vector_size: usize,
    ) -> Self {
        Extent { rows, columns, vertical, vector_size }
    }

    pub(crate) fn of<E: CubePrimitive>(input: &Input<E>) -> Self {
        Extent::new(input.rows, input.columns, input.transposed, input.vector_size)
    }

    pub(crate) fn of_sink<E: CubePrimitive>(sink: &Sink<E>) -> Self {
        Extent::new(sink.rows, sink.columns, false, sink.vector_size)
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
        let (batch, row, column) = position;
        let lanes = comptime!(self.vector_size as u32);
        let (down, across) = if comptime!(self.vertical) { (lanes, 1u32) } else { (1u32, lanes) };
        let inside = (batch, min(row, self.rows - down), min(column, self.columns - across));
        (inside, self.is_in_bounds(position))
    }

    fn shape(&self) -> Self::Coordinates {
        (1usize, self.rows, self.columns)
    }

    fn is_in_bounds(&self, position: Self::Coordinates) -> bool {
        let (_, row, column) = position;
        row < self.rows && column < self.columns
    }
}

impl<E: CubePrimitive> Vectorized for Matrix<E> {}
impl<E: CubePrimitive> VectorizedExpand for MatrixExpand<E> {
    fn vector_size(&self) -> usize {
        self.vector_size
    }
}

impl<E: CubePrimitive> ViewOperations<E, BatchedCoords> for Matrix<E> {}

type Position = <BatchedCoords as CubeType>::ExpandType;

impl<E: CubePrimitive> ViewOperationsExpand<E, BatchedCoords> for MatrixExpand<E> {
    fn __expand_read_method(&self, scope: &mut Scope, position: Position) -> E::ExpandType {
        read_at::expand::<E>(scope, self.clone(), position)
    }

    fn __expand_read_checked_method(&self, scope: &mut Scope, position: Position) -> E::ExpandType {
        read_at::expand::<E>(scope, self.clone(), position)
    }

    fn __expand_read_masked_method(
        &self,
        scope: &mut Scope,
        position: Position,
        _mask: E::ExpandType,
    ) -> E::ExpandType {
        read_at::expand::<E>(scope, self.clone(), position)
    }

    fn __expand_read_unchecked_method(&self, scope: &mut Scope, position: Position) -> E::ExpandType {
        read_at::expand::<E>(scope, self.clone(), position)
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

/// Where a product goes, and what goes with it: `factor · product + bias + residual`.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Sink<E: CubePrimitive> {
    data: Array<E>,
    bias: ComptimeOption<Array<E>>,
    residual: ComptimeOption<Array<E>>,
    /// Elements before the first, and from one row to the next.
    offset: u32,
    stride: u32,
    rows: u32,
    columns: u32,
    factor: f32,
    #[cube(comptime)]
    vector_size: usize,
}

/// Writes a vector of the product, with what goes with it.
#[cube]
pub(super) fn write_at<E: CubePrimitive>(sink: &mut Sink<E>, position: BatchedCoords, value: E) {
    let (_, row, column) = position;
    let at = (sink.offset + row * sink.stride + column) as usize / sink.vector_size;
    let mut sum = Vector::<f32, E::Size>::cast_from(value) * Vector::new(sink.factor);
    #[comptime]
    match &sink.bias {
        ComptimeOption::Some(bias) => {
            sum += Vector::<f32, E::Size>::cast_from(bias[column as usize / sink.vector_size]);
        }
        ComptimeOption::None => {}
    }
    #[comptime]
    match &sink.residual {
        ComptimeOption::Some(residual) => {
            sum += Vector::<f32, E::Size>::cast_from(residual[at]);
        }
        ComptimeOption::None => {}
    }
    sink.data[at] = E::cast_from(sum);
}

impl<E: CubePrimitive> Vectorized for Sink<E> {}
impl<E: CubePrimitive> VectorizedExpand for SinkExpand<E> {
    fn vector_size(&self) -> usize {
        self.vector_size
    }
}

impl<E: CubePrimitive> ViewOperations<E, BatchedCoords> for Sink<E> {}
impl<E: CubePrimitive> ViewOperationsMut<E, BatchedCoords> for Sink<E> {}

impl<E: CubePrimitive> ViewOperationsExpand<E, BatchedCoords> for SinkExpand<E> {
    fn __expand_read_method(&self, _scope: &mut Scope, _position: Position) -> E::ExpandType {
        unreachable!("a result is only written")
    }

    fn __expand_read_checked_method(&self, _scope: &mut Scope, _position: Position) -> E::ExpandType {
        unreachable!("a result is only written")
    }

    fn __expand_read_masked_method(
        &self,
        _scope: &mut Scope,
        _position: Position,
        _mask: E::ExpandType,
    ) -> E::ExpandType {
        unreachable!("a result is only written")
    }

    fn __expand_read_unchecked_method(&self, _scope: &mut Scope, _position: Position) -> E::ExpandType {
        unreachable!("a result is only written")
    }

    fn __expand_to_linear_slice_method(
        &self,
        _scope: &mut Scope,
        _position: Position,
        _end: Position,
    ) -> SliceExpand<E, ReadOnly> {
        unreachable!("a result is only written")
    }

    fn __expand_tensor_map_load_method(
        &self,
        _scope: &mut Scope,
        _barrier: BarrierExpand,
        _memory: SliceExpand<E, ReadWrite>,
        _position: Position,
    ) {
        unreachable!("a result is only written")
    }

    fn __expand_shape_method(&self, _scope: &mut Scope) -> Position {
        unreachable!("the layout above it knows the shape")
    }

    fn __expand_is_in_bounds_method(&self, _scope: &mut Scope, _position: Position) -> NativeExpand<bool> {
        true.into()
    }
}

impl<E: CubePrimitive> ViewOperationsMutExpand<E, BatchedCoords> for SinkExpand<E> {
    fn __expand_write_method(&self, scope: &mut Scope, position: Position, value: E::ExpandType) {
        write_at::expand::<E>(scope, self.clone(), position, value);
    }

    fn __expand_write_checked_method(&self, scope: &mut Scope, position: Position, value: E::ExpandType) {
        write_at::expand::<E>(scope, self.clone(), position, value);
    }

    fn __expand_to_linear_slice_mut_method(
        &self,
        _scope: &mut Scope,
        _position: Position,
        _end: Position,
    ) -> SliceExpand<E, ReadWrite> {
        unreachable!("the routines in use write vectors")
    }

    fn __expand_tensor_map_store_method(
        &self,
        _scope: &mut Scope,
        _memory: SliceExpand<E, ReadOnly>,
        _position: Position,
    ) {
        unreachable!("the routines in use write vectors")
    }
}
