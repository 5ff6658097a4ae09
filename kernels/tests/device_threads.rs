//! The names of CubeCL's threads that work for devices: they identify a device's panic. Threads are
//! started as CubeCL's runtimes start them, so that a version that names them otherwise fails here. One test, for a fault
//! is the whole process's.
#![expect(clippy::panic, reason = "the test raises a panic to be noticed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use cubecl_common::device::{DeviceId, DeviceService, DeviceServiceStage, ServerUtilitiesHandle};
use cubecl_common::device_handle::DeviceHandle;
use tune_kernels::fault;

/// Streams kernels to a device.
struct Downstream;

/// Makes work for it.
struct Upstream;

impl DeviceService for Downstream {
    fn init(_: DeviceId) -> Self {
        Self
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        Arc::new(())
    }
}

impl DeviceService for Upstream {
    fn init(_: DeviceId) -> Self {
        Self
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        Arc::new(())
    }

    fn stage() -> DeviceServiceStage {
        DeviceServiceStage::Upstream
    }
}

/// What is found to have gone wrong once a device's thread has panicked of `words`.
fn raised_by<S: DeviceService>(words: &'static str) -> Option<String> {
    DeviceHandle::<S>::new(DeviceId { type_id: 7, index_id: 0 }).submit(move |_| panic!("{words}"));
    DeviceHandle::<S>::new(DeviceId { type_id: 7, index_id: 0 }).flush_queue();
    let began = Instant::now();
    while fault::raised().is_none() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    fault::take()
}

#[test]
fn a_panic_of_a_devices_thread_is_noticed_and_no_other() {
    fault::listen();
    let other = std::thread::Builder::new().name("DS-other".into()).spawn(|| panic!("of another thread"));
    assert!(other.expect("a thread can be had").join().is_err());
    assert_eq!(fault::raised(), None);
    assert_eq!(raised_by::<Downstream>("no buffer").as_deref(), Some("no buffer"));
    assert_eq!(raised_by::<Upstream>("no graph").as_deref(), Some("no graph"));
}
