//! A slice that several tasks write in parts that interleave but never overlap.

use std::marker::PhantomData;

/// A mutably borrowed slice, handed out in pieces to several threads.
pub(crate) struct Disjoint<'a, T> {
    pointer: *mut T,
    length: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer is only turned into slices by `slice`, whose callers answer for their being disjoint.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(values: &'a mut [T]) -> Self {
        Self { pointer: values.as_mut_ptr(), length: values.len(), borrow: PhantomData }
    }

    /// Where value number `start` lies, with `length` values from there on.
    ///
    /// # Panics
    /// If the range is out of bounds.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for stores by hand, which are x86-64's")
    )]
    pub(crate) fn place(&self, start: usize, length: usize) -> *mut T {
        assert!(start <= self.length && length <= self.length - start, "disjoint place out of bounds");
        self.pointer.wrapping_add(start)
    }

    /// `length` values from `start` on.
    ///
    /// # Safety
    /// No two slices that live at the same time may overlap.
    ///
    /// # Panics
    /// If the range is out of bounds.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, start: usize, length: usize) -> &mut [T] {
        assert!(start <= self.length && length <= self.length - start, "disjoint slice out of bounds");
        // SAFETY: in bounds by the assertion, and disjoint from all others by the caller's promise; the borrow
        // keeps the allocation alive and everyone else out.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), length) }
    }
}
