//! The dtypes that a device computes in.

use burn_tensor::DType;
use cubecl::features::TypeUsage;
use cubecl::prelude::*;

/// The dtypes of f32, bf16 and f16 that a device computes in. Starts it.
pub fn dtypes<R: Runtime>(device: &R::Device) -> Vec<DType> {
    let client = R::client(device);
    let features = &client.properties().features;
    let has = |dtype: &DType| {
        let usage = features.type_usage((*dtype).into());
        usage.contains(TypeUsage::Buffer) && usage.contains(TypeUsage::Conversion)
    };
    [DType::F32, DType::BF16, DType::F16].into_iter().filter(has).collect()
}
