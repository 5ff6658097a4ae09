//! The most that tensors hold on a device during a piece of work, looked up wherever an op takes a buffer.

use std::cell::Cell;

use burn_cubecl::CubeRuntime;
use cubecl::client::ComputeClient;

use crate::device::DeviceMemory;
use crate::gpu::usage;

thread_local! {
    /// Per thread, as the pools are; `None` outside of [`watched`].
    static MOST: Cell<Option<DeviceMemory>> = const { Cell::new(None) };
}

/// Runs `work` and returns the largest memory held during it.
pub(super) fn watched<T>(work: impl FnOnce() -> T) -> (T, Option<DeviceMemory>) {
    MOST.set(Some(DeviceMemory::default()));
    let done = work();
    (done, MOST.take())
}

/// A buffer was taken.
pub(super) fn look<R: CubeRuntime>(client: &ComputeClient<R>) {
    let Some(most) = MOST.get() else { return };
    if let Some(now) = usage(client) {
        MOST.set(Some(most.max(now)));
    }
}
