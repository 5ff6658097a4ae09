//! What tensors hold on a device: now, and at most during a piece of work, looked up wherever an op takes a buffer.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use burn_cubecl::CubeRuntime;
use cubecl::client::ComputeClient;
use cubecl_common::stream_id::StreamId;

use crate::device::DeviceMemory;

thread_local! {
    /// Per thread, as the pools are; `None` outside of [`watched`].
    static MOST: Cell<Option<DeviceMemory>> = const { Cell::new(None) };
}

/// The streams of threads that place tensors for others.
static PLACING: Mutex<BTreeSet<StreamId>> = Mutex::new(BTreeSet::new());

/// Counts the pools of the calling thread in [`usage`] of all threads, from now on.
pub(super) fn place_for_others() {
    PLACING.lock().unwrap_or_else(PoisonError::into_inner).insert(StreamId::current());
}

/// What the pools on a device hold of the calling thread, and of those that place tensors for it.
pub(super) fn usage<R: CubeRuntime>(client: &ComputeClient<R>) -> Option<DeviceMemory> {
    let mut streams = PLACING.lock().unwrap_or_else(PoisonError::into_inner).clone();
    streams.insert(StreamId::current());
    let (mut client, mut all) = (client.clone(), DeviceMemory::default());
    for stream in streams {
        // SAFETY: this client is only asked what its pools hold.
        unsafe { client.set_stream(stream) };
        let usage = client.memory_usage().ok()?;
        all.in_use += usage.bytes_in_use;
        all.reserved += usage.bytes_reserved;
    }
    Some(all)
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
