//! The system's allocator for programs that report when memory runs out. The program decides on the message and how it
//! ends.

use std::alloc::{GlobalAlloc, Layout, System};

/// Allocates as the system does; where that fails, calls a function that does not return.
///
/// A program makes it its `#[global_allocator]`. Without it, Rust ends the program as if it had crashed.
#[derive(Debug)]
pub struct Allocator {
    out_of_memory: fn(usize) -> !,
}

impl Allocator {
    /// `out_of_memory` receives the number of bytes that could not be allocated. It must not allocate itself.
    pub const fn new(out_of_memory: fn(usize) -> !) -> Allocator {
        Allocator { out_of_memory }
    }

    fn checked(&self, memory: *mut u8, bytes: usize) -> *mut u8 {
        if memory.is_null() { (self.out_of_memory)(bytes) } else { memory }
    }
}

/// Has freed memory go back to the system: buffers from 1 MiB on at once, and what is free at the end of a heap from 2 MiB on.
/// Left to itself glibc raises these bounds with every large buffer that is freed, up to 32 and 64 MiB for each thread, and
/// memory is no longer what was planned. Other systems' allocators are left as they are.
pub fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;
        // From glibc's <malloc.h>.
        const TRIM_THRESHOLD: c_int = -1;
        const MMAP_THRESHOLD: c_int = -3;
        unsafe extern "C" {
            safe fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        // Where it is refused, things stay as they are.
        let _ = (mallopt(TRIM_THRESHOLD, 2 << 20), mallopt(MMAP_THRESHOLD, 1 << 20));
    }
}

// SAFETY: every request goes to the system's allocator, whose memory is returned as it is. The function called on failure
// does not return, and by its contract does not allocate.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the contract of `GlobalAlloc::alloc`, which is the system's.
        self.checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        self.checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from the system's allocator with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the memory came from the system's allocator with this layout; `bytes` is the caller's to vouch for.
        self.checked(unsafe { System.realloc(memory, layout, bytes) }, bytes)
    }
}
