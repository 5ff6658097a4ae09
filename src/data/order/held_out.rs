//! Which rows of a dataset are held out for evaluation, and the numbering of those that are and are not.
//! Whether a row is held out follows from a hash of seed, dataset and row alone.

use super::permutation::{derive_key, mix};

/// Rows per rank sample: what [`HeldOut`] keeps in memory is eight bytes for this many rows.
const SAMPLE: u64 = 256;

const PURPOSE: u64 = 1;

/// Whether `row` of `dataset` is held out when a share of `val_split`, in `[0, 1)`, is.
pub fn is_held_out(seed: u64, dataset: u32, row: u64, val_split: f64) -> bool {
    Draw::new(seed, dataset, val_split).takes(row)
}

/// The draw for one dataset: a threshold on a keyed hash of the row.
#[derive(Clone, Copy, Debug)]
struct Draw {
    key: u64,
    threshold: u64,
}

impl Draw {
    fn new(seed: u64, dataset: u32, val_split: f64) -> Draw {
        const TWO_TO_THE_64: f64 = 18_446_744_073_709_551_616.0;
        // The cast saturates; a split of 0 (or, wrongly, less, or NaN) takes nothing.
        Draw {
            key: derive_key(&[PURPOSE, seed, u64::from(dataset)]),
            threshold: (val_split * TWO_TO_THE_64) as u64,
        }
    }

    fn takes(self, row: u64) -> bool {
        mix(self.key ^ mix(row)) < self.threshold
    }
}

/// The rows of one dataset, parted into kept (trained on) and held out, each side numbered in file order.
///
/// Holds no row list: the draw is asked again, between samples of how many rows were kept before.
#[derive(Clone, Debug)]
pub struct HeldOut {
    rows: u64,
    kept: u64,
    draw: Draw,
    /// For every multiple of [`SAMPLE`] up to `rows`: rows kept before it. Empty: nothing is held out.
    kept_before: Box<[u64]>,
}

impl HeldOut {
    /// Parts the rows `0..rows` of `dataset`; asks the draw once for every row.
    pub fn new(seed: u64, dataset: u32, rows: u64, val_split: f64) -> HeldOut {
        let draw = Draw::new(seed, dataset, val_split);
        if draw.threshold == 0 {
            return HeldOut { rows, kept: rows, draw, kept_before: Box::default() };
        }
        let mut kept = 0;
        let mut kept_before = Vec::with_capacity((rows / SAMPLE + 1) as usize);
        for row in 0..rows {
            if row % SAMPLE == 0 {
                kept_before.push(kept);
            }
            kept += u64::from(!draw.takes(row));
        }
        HeldOut { rows, kept, draw, kept_before: kept_before.into() }
    }

    /// All of `0..rows` kept.
    pub fn nothing(rows: u64) -> HeldOut {
        HeldOut::new(0, 0, rows, 0.0)
    }

    /// Rows of the dataset.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows that are trained on.
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Rows that are held out.
    pub fn held(&self) -> u64 {
        self.rows - self.kept
    }

    /// The `index`-th kept row, in file order.
    pub fn kept_row(&self, index: u64) -> Option<u64> {
        if self.kept_before.is_empty() {
            return (index < self.kept).then_some(index);
        }
        let sample = self.kept_before.partition_point(|&before| before <= index).checked_sub(1)?;
        let skip = index - self.kept_before[sample];
        self.nth_after(sample, skip, false)
    }

    /// The `index`-th held-out row, in file order.
    pub fn held_row(&self, index: u64) -> Option<u64> {
        if index >= self.held() {
            return None;
        }
        // Held-out rows before a sample: its first row less the kept ones. Not decreasing.
        let (mut low, mut high) = (0, self.kept_before.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.held_before(middle) <= index { low = middle + 1 } else { high = middle }
        }
        let sample = low.checked_sub(1)?;
        self.nth_after(sample, index - self.held_before(sample), true)
    }

    /// How many kept rows lie before `row` (or before the end, if that comes first).
    pub(super) fn kept_before(&self, row: u64) -> u64 {
        if self.kept_before.is_empty() || row >= self.rows {
            return row.min(self.rows).min(self.kept);
        }
        let first = row - row % SAMPLE;
        let between = (first..row).filter(|&row| !self.draw.takes(row)).count() as u64;
        self.kept_before[(row / SAMPLE) as usize] + between
    }

    fn held_before(&self, sample: usize) -> u64 {
        sample as u64 * SAMPLE - self.kept_before[sample]
    }

    fn nth_after(&self, sample: usize, skip: u64, held: bool) -> Option<u64> {
        let first = sample as u64 * SAMPLE;
        (first..self.rows).filter(|&row| self.draw.takes(row) == held).nth(skip as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_sides_are_numbered_without_gap(seed: u64, rows in 0_u64..3000, val_split in 0.0..1.0) {
            let parted = HeldOut::new(seed, 3, rows, val_split);
            let (mut kept, mut held) = (0, 0);
            for row in 0..rows {
                prop_assert_eq!(parted.kept_before(row), kept);
                if is_held_out(seed, 3, row, val_split) {
                    prop_assert_eq!(parted.held_row(held), Some(row));
                    held += 1;
                } else {
                    prop_assert_eq!(parted.kept_row(kept), Some(row));
                    kept += 1;
                }
            }
            prop_assert_eq!((parted.kept(), parted.held()), (kept, held));
            prop_assert_eq!((parted.kept_row(kept), parted.held_row(held)), (None, None));
            prop_assert_eq!(parted.kept_before(rows), kept);
        }
    }

    #[test]
    fn the_share_is_what_was_asked_for() {
        let parted = HeldOut::new(42, 0, 1_000_000, 0.02);
        assert!((19_500..20_500).contains(&parted.held()), "{}", parted.held());
        assert_eq!(HeldOut::new(42, 0, 1000, 0.0).held(), 0);
        assert_eq!(HeldOut::nothing(10).kept_row(9), Some(9));
        assert_eq!(HeldOut::nothing(10).kept_row(10), None);
    }

    #[test]
    fn a_row_added_at_the_end_changes_no_other() {
        let (short, long) = (HeldOut::new(1, 0, 5000, 0.1), HeldOut::new(1, 0, 5001, 0.1));
        assert!((0..short.held()).all(|index| short.held_row(index) == long.held_row(index)));
    }
}
