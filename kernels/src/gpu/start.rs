//! Starting a device, and a first look at whether it computes at all.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, Tensor, TensorData};
use burn_cubecl::{CubeBackend, CubeRuntime};

/// Starts a device, has it multiply a few numbers, and tells the dtypes that it computes in, or in words what went
/// wrong.
pub(super) fn start<R: CubeRuntime>(device: &R::CubeDevice) -> Result<Vec<DType>, String> {
    // Runtimes unwrap what their drivers return; nothing of ours is held across the call.
    let attempt = AssertUnwindSafe(|| {
        let dtypes = super::dtypes::<R>(device);
        let data = TensorData::from([1.5f32, -2.0, 4.0]);
        let x = Tensor::<CubeBackend<R, f32, i32, u32>, 1>::from_data(data, device);
        let found: Vec<f32> = (x.clone() * x).into_data().iter::<f32>().collect();
        (dtypes, found)
    });
    match catch_unwind(attempt) {
        Ok((dtypes, found)) if found == [2.25, 4.0, 16.0] => Ok(dtypes),
        Ok((_, found)) => Err(format!("it multiplies wrongly: 1.5², 2² and 4² come out as {found:?}")),
        Err(panic) => Err(crate::check::panic_message(panic.as_ref())),
    }
}
