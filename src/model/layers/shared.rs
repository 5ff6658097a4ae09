//! Keys and values that several layers read, and the gradients that readers leave for the layer which computed them, on the
//! way of one batch through the layers and back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;

/// Keys and values, or their gradients.
type Pair<B> = [Tensor<B, 3>; 2];

/// The shared keys and values of one batch, by number. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Shared<B: KernelBackend>(Arc<Mutex<Vec<Entry<B>>>>);

#[derive(Debug)]
struct Entry<B: KernelBackend> {
    /// One pair for all documents, or one for each sequence that is continued.
    states: Option<Vec<Pair<B>>>,
    gradients: Option<Pair<B>>,
}

impl<B: KernelBackend> Default for Shared<B> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Vec::new())))
    }
}

impl<B: KernelBackend> Shared<B> {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry<B>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives keys and values to the layers above, in place of earlier ones.
    pub(super) fn give(&self, number: usize, states: Vec<Pair<B>>) {
        let mut entries = self.entries();
        if entries.len() <= number {
            entries.resize_with(number + 1, || Entry { states: None, gradients: None });
        }
        entries[number].states = Some(states);
    }

    /// Keys and values that a layer below gave.
    pub(super) fn read(&self, number: usize) -> Vec<Pair<B>> {
        let found = self.entries().get(number).and_then(|entry| entry.states.clone());
        found.unwrap_or_else(|| unreachable!("a layer below gave them"))
    }

    /// Adds to the gradients of keys and values.
    pub(super) fn add_gradients(&self, number: usize, [dkey, dvalue]: Pair<B>) {
        if let Some(Entry { gradients, .. }) = self.entries().get_mut(number) {
            *gradients = Some(match gradients.take() {
                Some([key, value]) => [key + dkey, value + dvalue],
                None => [dkey, dvalue],
            });
        }
    }

    /// The gradients that readers left, added to those of the layer itself.
    pub(super) fn with_gradients(&self, number: usize, [dkey, dvalue]: Pair<B>) -> Pair<B> {
        match self.entries().get_mut(number).and_then(|entry| entry.gradients.take()) {
            Some([key, value]) => [dkey + key, dvalue + value],
            None => [dkey, dvalue],
        }
    }
}
