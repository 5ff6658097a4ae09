//! Failures on the threads that drive GPUs.
//!
//! CubeCL drives a device from a thread of its own and swallows panics there: after a failed allocation, everything computed
//! with that buffer is wrong and no error is reported. So the process hooks its panics. The first one of such a thread is
//! saved, and ends the work at its next op (`check`) or when numbers are read back; the caller checks [`raised`] at the
//! end. A device that failed is not used again.

use std::cell::Cell;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

/// Whether there is a [`FAULT`]; checked by every op that takes a buffer.
static IS_RAISED: AtomicBool = AtomicBool::new(false);

/// The message of the first panic of a device's thread.
static FAULT: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    /// Whether panics of this thread are left to its caller.
    static IS_SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Installs the hook; later calls change nothing. Panics of other threads are reported as before, except those caused by a
/// device's panic, which are not reported twice.
pub fn listen() {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name().is_some_and(drives_a_device) {
                raise(message(info));
            } else if !IS_SILENT.get() && !IS_RAISED.load(Ordering::Acquire) {
                before(info);
            }
        }));
    });
}

/// Whether a thread has the name of CubeCL's device threads: `DSD-` or `DSU-`, and the device.
fn drives_a_device(name: &str) -> bool {
    name.starts_with("DSD-") || name.starts_with("DSU-")
}

fn message(info: &PanicHookInfo<'_>) -> String {
    info.payload_as_str().unwrap_or("it panicked without a message").trim().to_owned()
}

/// Reports a failure of a device; the first one counts.
pub(crate) fn raise(message: String) {
    FAULT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
    IS_RAISED.store(true, Ordering::Release);
}

/// The failure of a device, in the words of its runtime.
pub fn raised() -> Option<String> {
    match IS_RAISED.load(Ordering::Acquire) {
        true => FAULT.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        false => None,
    }
}

/// Takes the failure, so that another device can be tried.
pub fn take() -> Option<String> {
    IS_RAISED.store(false, Ordering::Release);
    FAULT.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Ends the work if a device failed.
///
/// # Panics
/// With the device's failure, if there is one; nothing is printed.
#[cfg(feature = "cube")]
pub(crate) fn check() {
    if let Some(fault) = raised() {
        panic::resume_unwind(Box::new(fault));
    }
}

/// Runs `work` without printing its panics on this thread: the caller catches and reports them.
pub fn silently<T>(work: impl FnOnce() -> T) -> T {
    listen();
    let before = IS_SILENT.replace(true);
    let done = work();
    IS_SILENT.set(before);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_devices_are_known_by_name() {
        assert!(drives_a_device("DSD-3-0") && drives_a_device("DSU-0-1"));
        assert!(!drives_a_device("main") && !drives_a_device("DS"));
    }
}
