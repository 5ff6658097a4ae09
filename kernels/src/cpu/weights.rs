//! Where frozen weights lie: one behind the other in large pages. Each is read from one end to the other for every token that
//! is decoded, and with pages of 4 KiB much of that time goes into finding pages (benches/README.md, "Decoding").
//!
//! Small weights are copied into chunks, in the order in which they come, as they come layer by layer. A chunk goes back to the
//! system when none of its weights is left. Large weights stay where they are, for a copy would need their memory twice, and
//! the system is asked to make large pages of theirs.

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cubecl_common::bytes::{AllocationController, AllocationProperty, Bytes};
use memmap2::MmapMut;

/// A large page of x86-64, and of aarch64 with pages of 4 KiB.
const PAGE: usize = 2 << 20;
/// Bytes of a chunk that several weights share.
const CHUNK: usize = 8 * PAGE;
/// Weights begin at multiples of this.
const ALIGNMENT: usize = 64;
/// Smaller ones are left to the allocator: biases, norms.
const SMALLEST: usize = 1 << 12;
/// Larger ones are not copied.
const LARGEST: usize = CHUNK / 4;

/// A stretch of large pages, zeroed.
struct Chunk {
    _map: MmapMut,
    /// The first large page.
    first: NonNull<u8>,
}

// SAFETY: the memory is the chunk's own, and each weight in it has bytes of its own.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// `None` where the system has no memory for it.
    fn new() -> Option<Self> {
        // Large pages begin at multiples of their size, mappings at any page; what is not touched takes no memory.
        let mut map = MmapMut::map_anon(CHUNK + PAGE).ok()?;
        let start = map.as_mut_ptr();
        let first = NonNull::new(start.wrapping_add(start.align_offset(PAGE)))?;
        // Where there are no large pages, nothing is lost.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Self { _map: map, first })
    }
}

/// The chunk that is being filled, and how many of its bytes are taken.
struct Open(Weak<Chunk>, usize);

static OPEN: Mutex<Open> = Mutex::new(Open(Weak::new(), 0));

impl Open {
    /// Memory for one weight; `None` where the system has none.
    fn take(&mut self, length: usize) -> Option<Weight> {
        let room = length.next_multiple_of(ALIGNMENT);
        assert!(room <= CHUNK, "a weight of {length} bytes does not fit into a chunk");
        let chunk = self.0.upgrade().filter(|_| self.1 + room <= CHUNK);
        let (chunk, start) = match chunk {
            Some(chunk) => (chunk, self.1),
            None => (Arc::new(Chunk::new()?), 0),
        };
        *self = Self(Arc::downgrade(&chunk), start + room);
        Some(Weight { chunk, start, length })
    }
}

/// The memory of one weight.
struct Weight {
    chunk: Arc<Chunk>,
    start: usize,
    length: usize,
}

impl Weight {
    fn pointer(&self) -> *mut u8 {
        // Within the chunk, as `Open::take` saw.
        self.chunk.first.as_ptr().wrapping_add(self.start)
    }
}

impl AllocationController for Weight {
    fn alloc_align(&self) -> usize {
        ALIGNMENT
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: `length` bytes of the chunk are this weight's alone, and borrowed mutably through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.pointer().cast(), self.length) }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.pointer().cast(), self.length) }
    }
}

/// A copy of some bytes among the weights, followed by zeros up to a multiple of `unit`; `None` if they shall stay where they
/// are: few, many, or there is no memory.
pub(super) fn placed(bytes: &[u8], unit: usize) -> Option<Bytes> {
    if bytes.len() > LARGEST {
        collapse(bytes);
    }
    if !(SMALLEST..=LARGEST).contains(&bytes.len()) {
        return None;
    }
    let length = bytes.len().next_multiple_of(unit);
    let weight = OPEN.lock().unwrap_or_else(PoisonError::into_inner).take(length)?;
    // SAFETY: `bytes` fit, these bytes are nobody else's yet, and the rest of them was zeroed with the mapping.
    unsafe { weight.pointer().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    // SAFETY: all bytes are initialized.
    Some(unsafe { Bytes::from_controller(Box::new(weight), length) })
}

/// Asks for large pages under some bytes, as far as they fill them: from Linux 6.1 on, elsewhere nothing happens.
fn collapse(bytes: &[u8]) {
    #[cfg(target_os = "linux")]
    {
        use std::ffi::{c_int, c_void};
        // From Linux's <asm-generic/mman-common.h>.
        const COLLAPSE: c_int = 25;
        unsafe extern "C" {
            fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
        }
        let before = bytes.as_ptr().align_offset(PAGE).min(bytes.len());
        let pages = &bytes[before..];
        let length = pages.len() / PAGE * PAGE;
        // SAFETY: this advice leaves contents and addresses as they are, and the pages are within the bytes.
        let _ = unsafe { madvise(pages.as_ptr().cast_mut().cast(), length, COLLAPSE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_copied_and_padded_with_zeros() {
        let numbers = |count: usize, seed: usize| -> Vec<u8> {
            (0..count).map(|number| (number * 31 + seed) as u8).collect()
        };
        assert!(placed(&numbers(SMALLEST - 1, 0), 4).is_none());
        // What stays where it is keeps its contents.
        let large = numbers(3 * CHUNK + 5, 7);
        assert!(placed(&large, 4).is_none() && large == numbers(3 * CHUNK + 5, 7));
        let sizes = [SMALLEST, 70_001, LARGEST - 3, LARGEST, 8_190];
        let all: Vec<_> = sizes.iter().map(|size| placed(&numbers(*size, *size), 4)).collect();
        for (bytes, size) in all.iter().zip(sizes) {
            let bytes = bytes.as_deref().unwrap_or(&[]);
            assert_eq!(bytes.len(), size.next_multiple_of(4));
            assert_eq!(bytes.as_ptr().addr() % ALIGNMENT, 0);
            assert!(bytes[..size] == numbers(size, size) && bytes[size..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_chunk_goes_with_the_last_of_its_weights() {
        let mut open = Open(Weak::new(), 0);
        let (first, second) = (open.take(100), open.take(LARGEST));
        let places = [&first, &second].map(|weight| weight.as_ref().map(|weight| weight.pointer().addr()));
        assert_eq!(places[1], places[0].map(|place| place + 128));
        drop(first);
        assert_eq!(open.0.strong_count(), 1);
        drop(second);
        assert_eq!(open.0.strong_count(), 0);
        // Its bytes are not handed out again.
        let third = open.take(100);
        assert!(third.is_some_and(|weight| weight.start == 0 && open.1 == 128));
    }
}
