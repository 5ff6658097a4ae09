//! When buffers that are free go back to the device.
//!
//! Each tensor has a buffer of its own size, and one that is free serves the next of its size. So a pass over as many rows
//! as the one before takes nothing that was not there, and what the pools hold is hardly more than what tensors held at
//! the largest moment. The buffers of a pass over other rows have other sizes: before it, what is free is given back.
//! Decoding makes some sizes anew for every token; it is noticed by pools that grow again and again.

use std::cell::Cell;

use burn_cubecl::CubeRuntime;

thread_local! {
    /// Per thread, as the pools are.
    static POLICY: Cell<Policy> = const { Cell::new(Policy::of(0)) };
}

/// From one look at the pools to the next, in passes over the same rows: a look waits until all launches are under way.
const LOOK: u32 = 8;

/// At how many looks pools may have grown: by then passes over the same rows take all that they need.
const SETTLED: u32 = 5;

#[derive(Clone, Copy, Debug)]
struct Policy {
    /// Of the last pass.
    rows: usize,
    /// Over these rows.
    passes: u32,
    /// Bytes of the pools at the last look.
    reserved: u64,
    /// Looks at which there were more than at the one before.
    grown: u32,
}

impl Policy {
    const fn of(rows: usize) -> Self {
        Self { rows, passes: 0, reserved: 0, grown: 0 }
    }

    /// Whether what is free goes back before a pass over `rows` rows. `look` tells the bytes in the pools, if it can.
    fn gives_back(&mut self, rows: usize, look: impl FnOnce() -> Option<u64>) -> bool {
        if rows != self.rows {
            *self = Self::of(rows);
            return true;
        }
        self.passes += 1;
        if !self.passes.is_multiple_of(LOOK) {
            return false;
        }
        let Some(reserved) = look() else { return false };
        self.grown += u32::from(reserved > self.reserved);
        self.reserved = reserved;
        if self.grown < SETTLED {
            return false;
        }
        *self = Self::of(rows);
        true
    }
}

/// A pass over `rows` rows is launched next.
pub(super) fn begin<R: CubeRuntime>(device: &R::CubeDevice, rows: usize) {
    let client = R::client(device);
    let mut policy = POLICY.get();
    if policy.gives_back(rows, || Some(client.memory_usage().ok()?.bytes_reserved)) {
        client.memory_cleanup();
    }
    POLICY.set(policy);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Pools of exact sizes: how many buffers of each there are, and how many are in use.
    #[derive(Default)]
    struct Pools {
        sizes: BTreeMap<u64, [u64; 2]>,
        peak: u64,
    }

    impl Pools {
        fn take(&mut self, size: u64) {
            let [all, used] = self.sizes.entry(size).or_default();
            *used += 1;
            *all = (*all).max(*used);
            self.peak = self.peak.max(self.sizes.iter().map(|(size, [_, used])| size * used).sum());
        }

        fn free(&mut self, size: u64) {
            self.sizes.entry(size).or_default()[1] -= 1;
        }

        fn reserved(&self) -> u64 {
            self.sizes.iter().map(|(size, [all, _])| size * all).sum()
        }

        fn begin(&mut self, policy: &mut Policy, rows: usize) {
            if policy.gives_back(rows, || Some(self.reserved())) {
                self.sizes.values_mut().for_each(|[all, used]| *all = *used);
            }
        }

        /// A micro-batch of `rows` tokens through 32 layers as wide as an 8B model's, which are run again in the backward
        /// pass, with a gradient for each; in units of 2 bytes.
        fn train(&mut self, policy: &mut Policy, rows: u64) {
            self.begin(policy, rows as usize);
            let (hidden, wide, weight) = (4096 * rows, 14_336 * rows, 4096 * 14_336);
            let inner = [wide, wide, wide, weight, hidden, hidden, hidden];
            for _ in 0..32 {
                self.take(hidden);
                inner.iter().for_each(|size| self.take(*size));
                inner.iter().for_each(|size| self.free(*size));
            }
            let loss = [256 * 128_256 * 3, hidden];
            loss.iter().for_each(|size| self.take(*size));
            self.free(loss[0]);
            for _ in 0..32 {
                inner.iter().for_each(|size| self.take(*size));
                inner.iter().for_each(|size| self.free(*size));
                self.free(hidden);
            }
            self.free(hidden);
        }
    }

    const WEIGHTS: u64 = 2_600_000_000;

    #[test]
    fn pools_hold_what_tensors_hold_at_the_largest_moment() {
        let constant = [2048; 6];
        let varied = [2048, 1900, 2047, 512, 2048, 2048, 1311, 16, 2048];
        for lengths in [&constant[..], &varied] {
            let (mut pools, mut policy) = (Pools::default(), POLICY.get());
            pools.take(WEIGHTS);
            let mut most = 0;
            for length in lengths {
                pools.train(&mut policy, *length);
                most = most.max(pools.reserved());
            }
            assert!(most as f64 <= 1.05 * pools.peak as f64, "{most} reserved, {} held", pools.peak);
        }
    }

    #[test]
    fn the_same_rows_keep_their_buffers_and_decoding_does_not_pile_them_up() {
        let (mut pools, mut policy) = (Pools::default(), POLICY.get());
        pools.take(WEIGHTS);
        pools.train(&mut policy, 777);
        let once = pools.reserved();
        for _ in 0..2 * LOOK * SETTLED {
            pools.train(&mut policy, 777);
            assert_eq!(pools.reserved(), once);
        }
        let mut most = 0;
        for token in 0..2000 {
            pools.begin(&mut policy, 1);
            // The keys and values of several sequences side by side.
            let size = 8192 * (token + 1);
            pools.take(size);
            pools.free(size);
            most = most.max(pools.reserved());
        }
        assert!(most < WEIGHTS + u64::from(LOOK * (SETTLED + 1)) * 8192 * 2000, "{most}");
    }
}
