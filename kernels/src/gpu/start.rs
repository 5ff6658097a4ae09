//! Starting a device, with a first test that it computes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn_cubecl::{CubeBackend, CubeRuntime};
use burn_tensor::{DType, Tensor, TensorData};

use super::dtypes::dtypes;
use crate::fault;

/// What a started device supports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Of f32, bf16 and f16 those that it computes in.
    pub dtypes: Vec<DType>,
    /// Largest buffer, in bytes.
    pub largest_buffer: u64,
    /// What it can do without, in words.
    pub lacks: Vec<String>,
}

/// Starts a device, tests it with a small multiplication, and returns what it supports, or a description of the failure.
pub(super) fn start<R: CubeRuntime>(device: &R::CubeDevice) -> Result<Started, String> {
    // Runtimes unwrap what their drivers return; nothing of ours is held across the call.
    let attempt = AssertUnwindSafe(|| {
        let largest_buffer = R::client(device).properties().memory.max_page_size;
        let started = Started { dtypes: dtypes::<R>(device), largest_buffer, lacks: Vec::new() };
        let data = TensorData::from([1.5f32, -2.0, 4.0]);
        let x = Tensor::<CubeBackend<R, f32, i32, u32>, 1>::from_data(data, device);
        let found: Vec<f32> = (x.clone() * x).into_data().iter::<f32>().collect();
        (started, found)
    });
    let attempt = fault::silently(|| catch_unwind(attempt));
    // Another device may be tried next: clear this one's failure.
    match (fault::take(), attempt) {
        (Some(fault), _) => Err(fault),
        (None, Ok((started, found))) if found == [2.25, 4.0, 16.0] => Ok(started),
        (None, Ok((_, found))) => {
            Err(format!("it multiplies wrongly: 1.5², 2² and 4² come out as {found:?}"))
        }
        (None, Err(panic)) => Err(crate::check::panic_message(panic.as_ref())),
    }
}
