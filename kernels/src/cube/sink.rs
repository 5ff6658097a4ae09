//! What a matrix product writes, as cubek's kernels see it: a result that takes bias, residual and a factor with it.

use cubecl::prelude::barrier::BarrierExpand;
use cubecl::prelude::*;
use cubecl::std::tensor::{ViewOperations, ViewOperationsExpand, ViewOperationsMut, ViewOperationsMutExpand};
use cubek::matmul::launch::BatchedCoords;

use super::operand::{Checks, Extent, Position};

/// Where a product goes, and what goes with it: `factor · product + bias + residual`.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Sink<E: CubePrimitive> {
    data: Array<E>,
    bias: ComptimeOption<Array<E>>,
    residual: ComptimeOption<Array<E>>,
    /// Elements before the first, and from one row to the next.
    offset: u32,
    stride: u32,
    pub(super) rows: u32,
    pub(super) columns: u32,
    factor: f32,
    #[cube(comptime)]
    vector_size: usize,
}

/// How far it reaches.
#[cube]
pub(super) fn extent<E: CubePrimitive>(sink: &Sink<E>, #[comptime] checks: Checks) -> Extent {
    Extent { rows: sink.rows, columns: sink.columns, checks }
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
