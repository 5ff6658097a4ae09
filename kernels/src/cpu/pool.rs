//! Reused memory: a step takes the buffers of the step before, so that steps do not allocate.
//!
//! One pool for the process, behind tensors and scratch alike. A buffer goes back when it is dropped, and is handed
//! out again for requests of about its size. The pool never holds more than the largest amount that was in use
//! at one time, plus an eighth. Buffers begin on a cache line and hold whatever the last user left in them.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;
use cubecl_common::bytes::{AllocationController, AllocationProperty, Bytes};
use memmap2::MmapMut;

/// Buffers begin at multiples of this.
const ALIGNMENT: usize = 64;
/// Sizes are rounded up to a multiple of this.
const GRAIN: usize = 1024;
/// From this size on, a buffer is a mapping of its own, which goes back to the system when it is freed. An allocator would
/// hold on to it, and with micro-batches of different lengths that adds up.
const MAPPED: usize = 1 << 18;

/// What the pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Bytes in buffers in use.
    pub in_use: usize,
    /// Bytes in all buffers, those that wait for their next user included.
    pub held: usize,
    /// The largest `in_use` since the start.
    pub peak: usize,
    /// Requests that no waiting buffer could serve, since the start.
    pub allocations: u64,
}

/// What the pool has done so far.
pub fn pool_use() -> PoolUse {
    state().counters
}

struct State {
    /// Sorted by size.
    free: Vec<Block>,
    counters: PoolUse,
}

struct Block {
    pointer: NonNull<u8>,
    bytes: usize,
    /// What `pointer` points into, if not to the heap.
    map: Option<MmapMut>,
}

// SAFETY: a block is the only pointer to its memory.
unsafe impl Send for Block {}

static POOL: Mutex<State> =
    Mutex::new(State { free: Vec::new(), counters: PoolUse { in_use: 0, held: 0, peak: 0, allocations: 0 } });

fn state() -> MutexGuard<'static, State> {
    // No code that can panic runs under the lock.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Block {
    fn layout(bytes: usize) -> Layout {
        match Layout::from_size_align(bytes, ALIGNMENT) {
            Ok(layout) => layout,
            Err(_) => handle_alloc_error(Layout::new::<u8>()),
        }
    }

    fn allocate(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        if bytes >= MAPPED {
            // Zeroed, and aligned to a page.
            let map = MmapMut::map_anon(bytes).ok();
            // Fewer entries of the address cache where the system has large pages; without them, nothing is lost.
            #[cfg(target_os = "linux")]
            let map = map.inspect(|map| _ = map.advise(memmap2::Advice::HugePage));
            let mapped = map.and_then(|mut map| Some((NonNull::new(map.as_mut_ptr())?, map)));
            if let Some((pointer, map)) = mapped {
                return Self { pointer, bytes, map: Some(map) };
            }
            // The program's allocator reports that memory is out.
        }
        // SAFETY: sizes are at least GRAIN.
        match NonNull::new(unsafe { alloc_zeroed(layout) }) {
            Some(pointer) => Self { pointer, bytes, map: None },
            None => handle_alloc_error(layout),
        }
    }

    fn free(self) {
        if self.map.is_none() {
            // SAFETY: allocated in `allocate` with the same layout.
            unsafe { dealloc(self.pointer.as_ptr(), Self::layout(self.bytes)) }
        }
    }

    fn take(bytes: usize) -> Self {
        let bytes = bytes.max(1).next_multiple_of(GRAIN);
        let mut state = state();
        let first = state.free.partition_point(|block| block.bytes < bytes);
        // A buffer far larger than needed is left for larger requests.
        let fits = state.free.get(first).is_some_and(|block| block.bytes <= bytes + bytes / 4 + 64 * GRAIN);
        let block = if fits {
            state.free.remove(first)
        } else {
            let peak = state.counters.peak.max(state.counters.in_use + bytes);
            state.evict((peak + peak / 8).saturating_sub(bytes));
            state.counters.allocations += 1;
            state.counters.held += bytes;
            Self::allocate(bytes)
        };
        state.counters.in_use += block.bytes;
        state.counters.peak = state.counters.peak.max(state.counters.in_use);
        block
    }

    fn give_back(self) {
        let mut state = state();
        state.counters.in_use -= self.bytes;
        let place = state.free.partition_point(|block| block.bytes < self.bytes);
        state.free.insert(place, self);
    }
}

impl State {
    /// Gives waiting buffers to the system, the smallest that suffices first, until no more than `limit` bytes are
    /// held or none waits.
    fn evict(&mut self, limit: usize) {
        while self.counters.held > limit && !self.free.is_empty() {
            let excess = self.counters.held - limit;
            let place = self.free.partition_point(|block| block.bytes < excess).min(self.free.len() - 1);
            let block = self.free.remove(place);
            self.counters.held -= block.bytes;
            block.free();
        }
    }
}

/// A buffer of values from the pool; goes back to it when dropped.
pub(crate) struct Buffer<T: Pod> {
    /// `None` only while being turned into a tensor's storage.
    block: Option<Block>,
    length: usize,
    values: PhantomData<T>,
}

// SAFETY: the buffer owns its block, and its values are plain data.
unsafe impl<T: Pod + Sync> Sync for Buffer<T> {}

/// A buffer of `length` values, which are whatever the last user left there.
pub(crate) fn take<T: Pod>(length: usize) -> Buffer<T> {
    const { assert!(align_of::<T>() <= ALIGNMENT) };
    Buffer { block: Some(Block::take(length * size_of::<T>())), length, values: PhantomData }
}

/// A buffer of `length` zeros.
pub(crate) fn zeros<T: Pod>(length: usize) -> Buffer<T> {
    let mut buffer = take(length);
    buffer.fill(T::zeroed());
    buffer
}

impl<T: Pod> std::ops::Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match &self.block {
            // SAFETY: the block holds at least `length` values, was zeroed when it was made, is aligned for T, and
            // any bytes are a T.
            Some(block) => unsafe { std::slice::from_raw_parts(block.pointer.as_ptr().cast(), self.length) },
            None => &[],
        }
    }
}

impl<T: Pod> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &self.block {
            // SAFETY: as above, and the buffer is borrowed mutably.
            Some(block) => unsafe {
                std::slice::from_raw_parts_mut(block.pointer.as_ptr().cast(), self.length)
            },
            None => &mut [],
        }
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            block.give_back();
        }
    }
}

impl<T: Pod> Buffer<T> {
    /// The buffer as the storage of a tensor.
    pub(crate) fn into_bytes(mut self) -> Bytes {
        let length = self.length * size_of::<T>();
        let storage = Storage { block: self.block.take(), length };
        // SAFETY: all bytes of the block are initialized.
        unsafe { Bytes::from_controller(Box::new(storage), length) }
    }
}

/// A block under a tensor.
struct Storage {
    block: Option<Block>,
    length: usize,
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            block.give_back();
        }
    }
}

impl AllocationController for Storage {
    fn alloc_align(&self) -> usize {
        ALIGNMENT
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        match &self.block {
            // SAFETY: the block holds at least `length` bytes and is borrowed mutably through `self`.
            Some(block) => unsafe {
                std::slice::from_raw_parts_mut(block.pointer.as_ptr().cast(), self.length)
            },
            None => &mut [],
        }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        match &self.block {
            // SAFETY: the block holds at least `length` bytes.
            Some(block) => unsafe { std::slice::from_raw_parts(block.pointer.as_ptr().cast(), self.length) },
            None => &[],
        }
    }
}
