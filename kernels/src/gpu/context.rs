//! The context of a CUDA device: the one that CubeCL computes in too, for the driver counts its users.

use std::ffi::c_int;

use cudarc::driver::result::{self, DriverError, device, primary_ctx};
use cudarc::driver::sys::{CUcontext, CUdevice};

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
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained by `of_raw`. There is nobody to tell of a failure.
        _ = unsafe { primary_ctx::release(self.device) };
    }
}
