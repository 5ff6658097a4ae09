//! The decoded blocks used last, shared by all threads that ask for rows. Knows their size, not their content.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::fault::Fault;

/// Bytes of decoded blocks that are kept, for one dataset.
const BUDGET: usize = 64 << 20;
/// Blocks that are kept whatever their size: neighbours in the order of an epoch may lie in so many.
const AT_LEAST: usize = 4;
/// Blocks that are kept at most.
const AT_MOST: usize = 128;

/// Names a block: the file, and its first row there.
pub(super) type Key = (usize, u64);

type Slot<B> = Arc<OnceLock<Result<Arc<B>, Fault>>>;

/// A cache of blocks, least recently used out first.
#[derive(Debug)]
pub(super) struct Cache<B> {
    /// In the order of their last use.
    entries: Mutex<Vec<Entry<B>>>,
}

#[derive(Debug)]
struct Entry<B> {
    key: Key,
    slot: Slot<B>,
    /// 0 until it is loaded.
    size: usize,
}

impl<B> Cache<B> {
    pub(super) fn new() -> Cache<B> {
        Cache { entries: Mutex::new(Vec::new()) }
    }

    /// The block of that name; `load`ed once, however many threads ask at the same time.
    pub(super) fn get(
        &self,
        key: Key,
        load: impl FnOnce() -> Result<B, Fault>,
        size: impl FnOnce(&B) -> usize,
    ) -> Result<Arc<B>, Fault> {
        let slot = self.slot(key);
        let mut loaded_size = None;
        let block = slot
            .get_or_init(|| {
                let block = load()?;
                loaded_size = Some(size(&block));
                Ok(Arc::new(block))
            })
            .clone();
        if let Some(size) = loaded_size {
            self.account(key, size);
        }
        block
    }

    fn slot(&self, key: Key) -> Slot<B> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match entries.iter().rposition(|entry| entry.key == key) {
            Some(at) => entries.remove(at),
            None => Entry { key, slot: Slot::default(), size: 0 },
        };
        let slot = entry.slot.clone();
        entries.push(entry);
        if entries.len() > AT_MOST {
            entries.remove(0);
        }
        slot
    }

    fn account(&self, key: Key, size: usize) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.iter_mut().find(|entry| entry.key == key) {
            entry.size = size;
        }
        let mut held: usize = entries.iter().map(|entry| entry.size).sum();
        while held > BUDGET && entries.len() > AT_LEAST {
            held -= entries.remove(0).size;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_block_is_loaded_once_by_many_threads_and_leaves_by_size() {
        let cache = Cache::new();
        let loads = AtomicUsize::new(0);
        let get = |key: u64| {
            let load = || {
                loads.fetch_add(1, Ordering::SeqCst);
                Ok(key)
            };
            *cache.get((0, key), load, |_| BUDGET / 8).unwrap()
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..8).for_each(|key| assert_eq!(get(key), key)));
            }
        });
        assert_eq!(loads.load(Ordering::SeqCst), 8);
        (8..12).for_each(|key| assert_eq!(get(key), key));
        assert_eq!(loads.load(Ordering::SeqCst), 12);
        assert_eq!(cache.entries.lock().unwrap().len(), 8);
        (4..8).for_each(|key| assert_eq!(get(key), key));
        assert_eq!(loads.load(Ordering::SeqCst), 12, "the later half stayed");
    }

    #[test]
    fn large_blocks_are_kept_while_they_are_few() {
        let cache = Cache::new();
        for key in 0..10 {
            cache.get((0, key), || Ok(()), |()| 2 * BUDGET).unwrap();
        }
        assert_eq!(cache.entries.lock().unwrap().len(), AT_LEAST);
    }

    #[test]
    fn a_fault_is_remembered() {
        let cache: Cache<()> = Cache::new();
        let fail = || cache.get((0, 0), || Err(Fault::new("broken")), |()| 0).unwrap_err().to_string();
        assert_eq!((fail(), fail()), ("broken".to_owned(), "broken".to_owned()));
    }
}
