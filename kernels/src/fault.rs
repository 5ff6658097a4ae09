//! What goes wrong on the threads that drive GPUs.
//!
//! CubeCL works for a device on a thread of its own, and swallows what panics there: where a buffer could not be had, all
//! computed with it afterwards is wrong, and no error is reported. So the process listens to its panics. The first
//! one of such a thread is kept, and ends the work that asked for it at its next op ([`check`]) or when it reads numbers
//! back; the caller checks [`raised`] at the end. A device that failed is not used again.

use std::cell::Cell;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

/// Whether there is a [`FAULT`]: looked at wherever an op takes a buffer.
static IS_RAISED: AtomicBool = AtomicBool::new(false);

/// What the first panic of a device's thread said.
static FAULT: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    /// Whether panics of this thread are left to its caller.
    static IS_SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Begins to listen; later calls change nothing. Panics of other threads are treated as before, but for those that follow
/// from a device's: they are not reported twice.
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

/// Whether CubeCL calls a thread so that works for a device: `DSD-` or `DSU-`, and the device.
fn drives_a_device(name: &str) -> bool {
    name.starts_with("DSD-") || name.starts_with("DSU-")
}

fn message(info: &PanicHookInfo<'_>) -> String {
    info.payload_as_str().unwrap_or("it panicked without a message").trim().to_owned()
}

fn raise(message: String) {
    FAULT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
    IS_RAISED.store(true, Ordering::Release);
}

/// What went wrong on a device, in the words of its runtime.
pub fn raised() -> Option<String> {
    match IS_RAISED.load(Ordering::Acquire) {
        true => FAULT.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        false => None,
    }
}

/// Takes what went wrong, so that something else can be tried.
pub fn take() -> Option<String> {
    IS_RAISED.store(false, Ordering::Release);
    FAULT.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Ends the work on a device that failed.
///
/// # Panics
/// With what went wrong, if something did; nothing is printed.
#[cfg(feature = "cube")]
pub(crate) fn check() {
    if let Some(fault) = raised() {
        panic::resume_unwind(Box::new(fault));
    }
}

/// Does `work`, whose panics on this thread are not printed: the caller catches and reports them.
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
