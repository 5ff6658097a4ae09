//! The CPU as a device.

use burn_flex::Flex;

use super::parallel;
use crate::device::DeviceOps;

impl DeviceOps for Flex {
    fn on_workers<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        parallel::on_workers(work)
    }
}
