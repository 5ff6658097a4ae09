//! Reused f32 buffers, a few per thread, so that tasks do not allocate.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers a thread keeps at most.
const KEPT: usize = 8;
/// Values above which a buffer is given back to the allocator at once (64 MiB).
const KEPT_VALUES: usize = 1 << 24;

/// An f32 buffer of exactly the length asked for, with whatever values the last user left in it. Goes back to the
/// thread when dropped.
pub(crate) struct Scratch {
    values: Vec<f32>,
    length: usize,
}

/// A buffer of `length` values.
pub(crate) fn take(length: usize) -> Scratch {
    let mut values = FREE.with_borrow_mut(|free| {
        // The smallest that is large enough, else the largest (it grows).
        let fitting = (0..free.len()).filter(|&i| free[i].len() >= length).min_by_key(|&i| free[i].len());
        let index = fitting.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
        index.map(|index| free.swap_remove(index)).unwrap_or_default()
    });
    if values.len() < length {
        values.clear();
        values.resize(length, 0.0);
    }
    Scratch { values, length }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values[..self.length]
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.length]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        if values.len() <= KEPT_VALUES {
            // A thread that is ending has no list any more; the buffer is then simply freed.
            let _ = FREE.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() < KEPT {
                    free.push(values);
                }
            });
        }
    }
}
