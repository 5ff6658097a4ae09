//! A producer on its own thread, a bounded number of items ahead of its consumer. Knows nothing of the items.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::error::Error;

/// An iterator whose items are made ahead on another thread. An error is the last item. Dropping it stops the thread
/// and waits for it.
#[derive(Debug)]
pub struct Prefetched<T> {
    receiver: Option<Receiver<Result<T, Error>>>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

/// The producer's end.
#[derive(Debug)]
pub(super) struct Outlet<T> {
    sender: SyncSender<Result<T, Error>>,
    stop: Arc<AtomicBool>,
}

impl<T> Outlet<T> {
    /// Sends an item; waits while enough items are ready. Returns false if the consumer is gone.
    pub(super) fn send(&self, item: T) -> bool {
        self.sender.send(Ok(item)).is_ok()
    }

    /// Whether the consumer is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl<T: Send + 'static> Prefetched<T> {
    /// Starts `produce`, at most `ahead` items ahead.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn spawn(
        ahead: usize,
        produce: impl FnOnce(&Outlet<T>) -> Result<(), Error> + Send + 'static,
    ) -> Result<Prefetched<T>, Error> {
        let (sender, receiver) = sync_channel(ahead);
        let stop = Arc::new(AtomicBool::new(false));
        let outlet = Outlet { sender, stop: Arc::clone(&stop) };
        let work = move || {
            if let Err(error) = produce(&outlet) {
                // Fails only if the consumer is gone.
                let _unheard = outlet.sender.send(Err(error));
            }
        };
        let worker = std::thread::Builder::new()
            .name("batches".to_owned())
            .spawn(work)
            .map_err(|error| Error::Threads { problem: error.to_string() })?;
        Ok(Prefetched { receiver: Some(receiver), stop, worker: Some(worker) })
    }
}

impl<T> Iterator for Prefetched<T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.receiver.as_ref()?.recv() {
            Ok(Ok(item)) => Some(Ok(item)),
            Ok(Err(error)) => {
                self.receiver = None;
                Some(Err(error))
            }
            Err(_) => {
                self.receiver = None;
                // The producer is gone: at its end, or broken down, which must not look like the end.
                let outcome = self.worker.take().map(JoinHandle::join);
                match outcome {
                    Some(Err(_)) => {
                        let problem = "the producing thread broke down; this is a defect of the program";
                        Some(Err(Error::Threads { problem: problem.to_owned() }))
                    }
                    _ => None,
                }
            }
        }
    }
}

impl<T> Drop for Prefetched<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.receiver = None;
        if let Some(worker) = self.worker.take() {
            // The consumer is gone: a panic of the producer has no one to report to.
            let _outcome = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_in_order_and_then_the_error() {
        let mut items = Prefetched::spawn(2, |outlet| {
            (0..5).for_each(|item| assert!(outlet.send(item)));
            Err(Error::Endless)
        })
        .unwrap();
        for expected in 0..5 {
            assert_eq!(items.next().unwrap().unwrap(), expected);
        }
        assert!(matches!(items.next(), Some(Err(Error::Endless))));
        assert!(items.next().is_none());
    }

    #[test]
    fn dropping_it_stops_the_producer() {
        let given = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let count = Arc::clone(&given);
        let mut items = Prefetched::spawn(1, move |outlet| {
            while outlet.send(()) {
                count.fetch_add(1, Ordering::SeqCst);
            }
            assert!(outlet.is_closed());
            Ok(())
        })
        .unwrap();
        assert!(items.next().is_some());
        drop(items);
        let at_the_end = given.load(Ordering::SeqCst);
        assert!(at_the_end <= 3, "{at_the_end} items were made for one that was taken");
    }

    #[test]
    fn a_breakdown_is_not_the_end() {
        let mut items = Prefetched::<u8>::spawn(1, |_| panic!("on purpose")).unwrap();
        assert!(matches!(items.next(), Some(Err(Error::Threads { .. }))));
        assert!(items.next().is_none());
    }
}
