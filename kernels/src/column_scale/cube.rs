//! Scaled columns on a GPU, as they are composed for every backend.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::ColumnScaleOps;

impl<R, F, I, T> ColumnScaleOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
}
