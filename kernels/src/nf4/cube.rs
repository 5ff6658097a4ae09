//! x
use crate::nf4::Nf4Weight;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::*;
pub(crate) fn dequantize<R: CubeRuntime, F: FloatElement, I: IntElement, T: BoolElement>(
    weight: &Nf4Weight<CubeBackend<R, F, I, T>>,
    dtype: DType,
) -> CubeTensor<R> {
    unimplemented!()
}
