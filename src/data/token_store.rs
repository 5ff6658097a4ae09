//! The sequences of all rows, kept from the survey for training as long as they fit a budget of memory. Knows no files.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::example::RowId;
use super::sequence::Group;

/// A row that is left out is kept as `None`.
type Slot = OnceLock<Option<Box<Group>>>;

/// One group for each row of each dataset. Rows may be kept from many threads at once.
#[derive(Debug)]
pub(super) struct TokenStore {
    datasets: Vec<Vec<Slot>>,
    /// Bytes that may still be taken.
    left: AtomicU64,
    is_too_small: AtomicBool,
}

impl TokenStore {
    /// A store of at most `budget` bytes for datasets of so many rows. `None`: they do not fit, however short they are.
    pub(super) fn new(rows: &[u64], budget: u64) -> Option<TokenStore> {
        let rows_of_all = rows.iter().try_fold(0_u64, |sum, rows| sum.checked_add(*rows))?;
        let left = budget.checked_sub(rows_of_all.checked_mul(size_of::<Slot>() as u64)?)?;
        let datasets = rows.iter().map(|rows| (0..*rows).map(|_| Slot::new()).collect()).collect();
        Some(TokenStore { datasets, left: left.into(), is_too_small: AtomicBool::new(false) })
    }

    /// Keeps what a row is made into, unless the budget is spent.
    pub(super) fn keep(&self, row: RowId, group: Option<Group>) {
        let bytes = group.as_ref().map_or(0, Group::bytes);
        let take = |left: u64| left.checked_sub(bytes);
        if self.is_too_small.load(Ordering::Relaxed)
            || self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err()
        {
            self.is_too_small.store(true, Ordering::Relaxed);
        } else if let Some(slot) = self.slot(row) {
            // A row that is kept already was made of the same row.
            let _same = slot.set(group.map(Box::new));
        }
    }

    /// Whether every row that was to be kept is.
    pub(super) fn is_whole(&self) -> bool {
        !self.is_too_small.load(Ordering::Relaxed)
    }

    /// What a row is made into: `Some(None)` if it is left out, `None` if that was not kept.
    pub(super) fn get(&self, row: RowId) -> Option<Option<Group>> {
        Some(self.slot(row)?.get()?.as_deref().cloned())
    }

    fn slot(&self, row: RowId) -> Option<&Slot> {
        self.datasets.get(row.dataset as usize)?.get(usize::try_from(row.row).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sequence::{Sequence, Side};

    fn group(row: RowId, tokens: u32) -> Group {
        let (ids, targets) = ((0..tokens).collect(), vec![7; tokens as usize]);
        Group::from(Sequence {
            row,
            side: Side::Plain,
            prefix: 0,
            input_ids: ids,
            targets,
            supervised_tokens: 1,
        })
    }

    #[test]
    fn what_is_kept_is_given_back_until_the_budget_is_spent() {
        let row = |dataset, row| RowId { dataset, row };
        let slots = 5 * size_of::<Slot>() as u64;
        assert!(TokenStore::new(&[2, 3], slots - 1).is_none());
        let one = group(row(1, 2), 10).bytes();
        let store = TokenStore::new(&[2, 3], slots + one).unwrap();
        assert_eq!(store.get(row(1, 2)), None);
        store.keep(row(1, 2), Some(group(row(1, 2), 10)));
        store.keep(row(0, 0), None);
        assert_eq!(store.get(row(1, 2)), Some(Some(group(row(1, 2), 10))));
        assert_eq!(store.get(row(0, 0)), Some(None));
        assert_eq!(store.get(row(7, 0)), None);
        assert!(store.is_whole());
        store.keep(row(1, 1), Some(group(row(1, 1), 1)));
        assert!(!store.is_whole());
        assert_eq!(store.get(row(1, 1)), None);
    }
}
