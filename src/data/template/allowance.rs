//! How much all renders of a template may take together, whatever each of them may: a template that takes all that one
//! render is allowed, for every row, takes days. Counts what `effort` counts; knows nothing of templates.
//!
//! Every render brings in what the most laborious of honest templates needs for its conversation, many times over, and
//! takes out what it took. So the sum rises for as long as a dataset goes on, and a template that lives beyond its means
//! is out of them after a few seconds, whatever the number of rows.

use std::sync::atomic::{AtomicI64, Ordering};

/// What there is before the first render: as much as two take that go to their limit.
const START: i64 = 16 << 30;

/// What a render brings in: some ten thousand instructions. Common templates take a few hundred.
const RENDER: u64 = 16 << 20;

/// What each byte of a conversation brings in. A template that goes through all messages for each message takes less for as
/// long as its instructions last, and one that adds message after message to one text takes a tenth of it for a million
/// bytes.
const BYTE: u64 = 64 << 10;

/// What a byte that is written takes out: it has to be tokenized.
const WRITTEN: u64 = 4 << 10;

/// What the renders of a template have left. Shared by all threads.
#[derive(Debug)]
pub(super) struct Allowance {
    left: AtomicI64,
}

impl Allowance {
    pub(super) fn new() -> Allowance {
        Allowance { left: AtomicI64::new(START) }
    }

    /// Before a render of a conversation of so many bytes: what it brings in.
    pub(super) fn begin(&self, bytes: u64) {
        self.change(signed(brings(bytes)));
    }

    /// Behind a render: what it took, and how many bytes it wrote.
    pub(super) fn end(&self, effort: u64, written: usize) {
        let taken = (written as u64).saturating_mul(WRITTEN).saturating_add(effort);
        self.change(-signed(taken));
    }

    /// Nothing is left: no further render may begin, so nothing will be.
    pub(super) fn is_spent(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }

    /// What is left, less than nothing when it is spent.
    #[cfg(test)]
    pub(super) fn left(&self) -> i64 {
        self.left.load(Ordering::Relaxed)
    }

    fn change(&self, by: i64) {
        let _always_some = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_add(by)));
    }
}

/// What the render of a conversation of so many bytes brings in.
pub(super) fn brings(bytes: u64) -> u64 {
    bytes.saturating_mul(BYTE).saturating_add(RENDER)
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_more_than_he_brings_is_out_of_means() {
        let allowance = Allowance::new();
        for _ in 0..2 {
            assert!(!allowance.is_spent());
            allowance.begin(100);
            allowance.end(13 << 30, 100);
        }
        assert!(allowance.is_spent());
        // Text that is written without end takes time as well.
        let allowance = Allowance::new();
        allowance.begin(100);
        allowance.end(0, 100 << 20);
        assert!(allowance.is_spent());
    }

    #[test]
    fn who_does_not_never_is() {
        let allowance = Allowance::new();
        for _ in 0..100_000 {
            // A conversation of a kilobyte, by two thousand instructions.
            allowance.begin(1 << 10);
            allowance.end((2_000 << 10) + (10 << 10), 2 << 10);
        }
        // One of a million bytes whose turns are added to one text, a few times over.
        allowance.begin(1 << 20);
        allowance.end(8 << 30, 1 << 20);
        // Nothing overflows.
        allowance.begin(u64::MAX);
        allowance.begin(u64::MAX);
        allowance.end(1 << 40, 0);
        assert!(!allowance.is_spent());
    }
}
