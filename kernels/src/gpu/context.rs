//! The context of a CUDA device: the one that CubeCL computes in too, for the driver counts its users.

use std::ffi::c_int;

use cudarc::driver::result::{self, DriverError, device, mem_pool, primary_ctx};
use cudarc::driver::sys::{CUcontext, CUdevice, CUmemPool_attribute};

/// A use of a device's context; given back when it is dropped.
pub(super) struct Context {
    device: CUdevice,
    context: CUcontext,
}

impl Context {
    pub(super) fn of(index: usize) -> Result<Self, DriverError> {
        Self::of_raw(device::get(index as c_int)?)
    }

    pub(super) fn of_raw(device: CUdevice) -> Result<Self, DriverError> {
        // SAFETY: the device is one that the driver handed out.
        let context = unsafe { primary_ctx::retain(device)? };
        Ok(Self { device, context })
    }

    /// Makes it what the calling thread's calls are about.
    pub(super) fn enter(&self) -> Result<(), DriverError> {
        // SAFETY: it is in use as long as this value lives.
        unsafe { result::ctx::set_current(self.context) }
    }

    /// Makes the driver keep the memory of buffers that are freed, for the next ones. Without this it goes back to the system at
    /// the next wait, and micro-batches of other lengths have all of theirs mapped anew.
    pub(super) fn keep_freed_memory(&self) -> Result<(), DriverError> {
        let mut most = u64::MAX;
        // SAFETY: the device is one that the driver handed out; the attribute is one number, read during the call.
        unsafe {
            let pool = device::get_default_mem_pool(self.device)?;
            let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            mem_pool::set_attribute(pool, threshold, (&raw mut most).cast())
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained by `of_raw`. A failure cannot be reported from here.
        _ = unsafe { primary_ctx::release(self.device) };
    }
}
