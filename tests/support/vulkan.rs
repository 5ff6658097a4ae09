//! The Vulkan devices of this machine, for tests that need one.
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use tune_kernels::gpu::{Found, WgpuDevice, wgpu_devices};

/// The devices; `None`, with a word, where there is none. With `TUNE_REQUIRE_VULKAN` set, as in CI, a machine without one
/// fails the test instead.
pub(crate) fn devices() -> Option<Vec<Found<WgpuDevice>>> {
    match wgpu_devices() {
        Ok(devices) => Some(devices),
        Err(why) => {
            let is_required = std::env::var_os("TUNE_REQUIRE_VULKAN").is_some();
            assert!(!is_required, "TUNE_REQUIRE_VULKAN is set: {why}; {}", why.help());
            println!("skipped: {why}; {}", why.help());
            None
        }
    }
}
