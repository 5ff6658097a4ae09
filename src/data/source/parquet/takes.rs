//! What the rows of a row group take in memory when they are decoded, summed up for each unit of them that is decoded as one.
//! Knows no pages: they are counted by those who read them.

use std::ops::Range;

use super::super::fault::Fault;
use crate::units::Bytes;

/// Bytes that each unit takes so far.
pub(super) struct Takes {
    /// First row in the file of the row group.
    base: u64,
    /// First row in the group of each unit, ending with the number of rows.
    starts: Vec<u64>,
    bytes: Vec<u64>,
    /// The unit counted for last.
    last: usize,
    /// What one may take.
    most: u64,
    /// Whether they may take more than was counted.
    is_open: bool,
}

impl Takes {
    pub(super) fn new(base: u64, starts: Vec<u64>, most: u64) -> Takes {
        let bytes = vec![0; starts.len().saturating_sub(1)];
        Takes { base, starts, bytes, last: 0, most, is_open: false }
    }

    /// What a unit may take.
    pub(super) fn most(&self) -> u64 {
        self.most
    }

    /// From now on, nobody knows: they may take more than was counted.
    pub(super) fn leave_open(&mut self) {
        self.is_open = true;
    }

    /// What each unit takes so far.
    pub(super) fn bytes(&self) -> &[u64] {
        &self.bytes
    }

    /// Whether it is known that no unit takes more than it may.
    pub(super) fn all_fit(&self) -> bool {
        !self.is_open && self.bytes.iter().all(|bytes| *bytes <= self.most)
    }

    /// Counts, for each of some rows, `each`, and for each unit that they touch, `whole`.
    pub(super) fn add_rows(&mut self, rows: Range<u64>, each: u64, whole: u64) {
        let first = self.starts.partition_point(|start| *start <= rows.start).saturating_sub(1);
        let units = self.starts.windows(2).zip(&mut self.bytes).skip(first);
        for (bounds, bytes) in units.take_while(|(bounds, _)| bounds[0] < rows.end) {
            let touched = rows.end.min(bounds[1]).saturating_sub(rows.start.max(bounds[0]));
            if touched > 0 {
                *bytes = bytes.saturating_add(touched.saturating_mul(each)).saturating_add(whole);
            }
        }
    }

    /// Counts what may belong to any unit, for all of them.
    pub(super) fn add_anywhere(&mut self, more: u64) {
        self.bytes.iter_mut().for_each(|bytes| *bytes = bytes.saturating_add(more));
    }

    /// Counts a value of a row.
    ///
    /// # Errors
    /// The unit of the row takes more than it may: `column` made it so.
    pub(super) fn add(&mut self, row: u64, more: u64, column: &str) -> Result<(), Fault> {
        let is_of = |unit: usize| {
            let bounds = self.starts.get(unit).zip(self.starts.get(unit + 1));
            bounds.is_some_and(|(start, end)| (*start..*end).contains(&row))
        };
        if !is_of(self.last) {
            self.last = self.starts.partition_point(|start| *start <= row).saturating_sub(1);
        }
        let Some(bytes) = self.bytes.get_mut(self.last) else { return Ok(()) };
        *bytes = bytes.saturating_add(more);
        if *bytes <= self.most {
            return Ok(());
        }
        let (first, last) = (self.base + self.starts[self.last], self.base + self.starts[self.last + 1] - 1);
        Err(Fault::new(format!(
            "rows {first} to {last} take more than {} in memory, the most that this file accounts for: column `{column}` says the \
             same over and over; write it anew with fewer rows to a row group, or with less in each",
            Bytes(self.most)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_count_for_their_units() {
        let mut takes = Takes::new(100, vec![0, 10, 20, 25], 1000);
        takes.add_rows(5..12, 3, 100);
        assert_eq!(takes.bytes, [115, 106, 0]);
        takes.add_rows(20..25, 1, 0);
        takes.add_rows(30..40, 1, 7);
        takes.add_rows(3..3, 1, 7);
        assert_eq!(takes.bytes, [115, 106, 5]);
        takes.add_anywhere(1);
        for (row, more) in [(0, 10), (9, 10), (10, 20), (24, 30), (11, 1)] {
            takes.add(row, more, "a").unwrap();
        }
        assert_eq!(takes.bytes, [136, 128, 36]);
        assert!(takes.all_fit());
        let fault = takes.add(12, 900, "a").unwrap_err().to_string();
        assert!(fault.starts_with("rows 110 to 119 take more than 1000 B"), "{fault}");
        assert!(!takes.all_fit());
        let mut takes = Takes::new(0, vec![0, 1], 1000);
        takes.leave_open();
        assert!(!takes.all_fit());
    }
}
