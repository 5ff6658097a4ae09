//! The layers of a decoder behind one door: all computation walks them, up or down, and holds one at a time.
//!
//! A walk knows its order before it begins, and hands out a guard for each layer. Nothing holds a layer beyond its guard,
//! so that where layers come from (memory, or files in which they are read one by one) is decided here alone.

use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tune_kernels::KernelBackend;

use super::Layer;
use super::slots::Slots;
use crate::model::Error;
use crate::model::absent::{self, Failure};
use crate::model::fetch::Fetcher;

/// The layers of a decoder. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Layers<B: KernelBackend> {
    /// The first ones, which are fetched for each use.
    streamed: Option<Arc<Streamed<B>>>,
    /// Those behind them, which stay on the device.
    resident: Vec<Arc<Layer<B>>>,
}

/// Layers that are fetched for each use.
#[derive(Debug)]
struct Streamed<B: KernelBackend> {
    count: usize,
    /// Of all their weights.
    bytes: u64,
    slots: Mutex<Slots<Fetcher<B>>>,
}

impl<B: KernelBackend> Streamed<B> {
    fn slots(&self) -> MutexGuard<'_, Slots<Fetcher<B>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which layers are walked, and in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the embeddings up.
    Up(Range<usize>),
    /// Towards the embeddings.
    Down(Range<usize>),
}

/// One layer after another, with its number.
pub struct Walk<'a, B: KernelBackend> {
    order: Order,
    source: Source<'a, B>,
    /// Of the last layer, where projections of it may not have come.
    failure: Option<Failure>,
}

enum Source<'a, B: KernelBackend> {
    /// Layers lie on the device or are fetched ahead.
    Held(&'a Layers<B>),
    /// Each layer is read when the walk comes to it.
    Read(Box<dyn FnMut(usize) -> Result<Layer<B>, Error> + 'a>),
}

/// A layer for as long as it is computed with.
#[derive(Debug)]
pub struct Guard<B: KernelBackend> {
    layer: Arc<Layer<B>>,
    /// Of a fetched layer; goes after the layer.
    _ticket: Option<Ticket<B>>,
}

/// The use of a slot. Dropped, it is free for another layer once the work launched so far is done.
#[derive(Debug)]
struct Ticket<B: KernelBackend> {
    streamed: Arc<Streamed<B>>,
    place: usize,
}

impl<B: KernelBackend> Drop for Ticket<B> {
    fn drop(&mut self) {
        self.streamed.slots().give_back(self.place);
    }
}

impl<B: KernelBackend> Deref for Guard<B> {
    type Target = Layer<B>;

    fn deref(&self) -> &Layer<B> {
        &self.layer
    }
}

impl<B: KernelBackend> Layers<B> {
    /// Layers that stay on the device.
    pub(in crate::model) fn resident(layers: Vec<Layer<B>>) -> Self {
        Self { streamed: None, resident: layers.into_iter().map(Arc::new).collect() }
    }

    /// `count` layers of `bytes` bytes in all that are fetched into some slots, and behind them those that stay.
    pub(in crate::model) fn streaming(
        fetcher: Fetcher<B>,
        slots: usize,
        count: usize,
        bytes: u64,
        resident: Vec<Layer<B>>,
    ) -> Self {
        let slots = Mutex::new(Slots::new(fetcher, slots));
        let streamed = (count > 0).then(|| Arc::new(Streamed { count, bytes, slots }));
        Self { streamed, ..Self::resident(resident) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.streamed() + self.resident.len()
    }

    /// How many of them are fetched for each use.
    fn streamed(&self) -> usize {
        self.streamed.as_ref().map_or(0, |streamed| streamed.count)
    }

    /// Whether none is fetched.
    pub fn are_held(&self) -> bool {
        self.streamed.is_none()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        let streamed = self.streamed.as_ref().map_or(0, |streamed| streamed.bytes);
        streamed + self.resident.iter().map(|layer| layer.bytes()).sum::<u64>()
    }

    /// Every layer, from the embeddings up.
    pub fn up(&self) -> Walk<'_, B> {
        self.walk(Order::Up(0..self.len()))
    }

    /// Some layers in some order.
    pub fn walk(&self, order: Order) -> Walk<'_, B> {
        self.walk_with(order, usize::MAX)
    }

    /// Some layers in some order, for computing with so many tokens.
    pub fn walk_with(&self, order: Order, tokens: usize) -> Walk<'_, B> {
        if let Some(streamed) = &self.streamed {
            let mut slots = streamed.slots();
            slots.carrier().prepare(tokens);
            let is_streamed = |layer: &usize| *layer < streamed.count;
            match &order {
                Order::Up(range) => slots.want(range.clone().filter(is_streamed)),
                Order::Down(range) => slots.want(range.clone().rev().filter(is_streamed)),
            }
        }
        Walk { order, source: Source::Held(self), failure: None }
    }

    fn get(&self, layer: usize) -> Option<Result<Guard<B>, Error>> {
        match &self.streamed {
            Some(streamed) if layer < streamed.count => {
                let found = streamed.slots().lend(layer).map(|(place, layer)| (place, Arc::clone(layer)));
                Some(found.map(|(place, layer)| {
                    let ticket = Ticket { streamed: Arc::clone(streamed), place };
                    Guard { layer, _ticket: Some(ticket) }
                }))
            }
            _ => {
                let layer = Arc::clone(self.resident.get(layer - self.streamed())?);
                Some(Ok(Guard { layer, _ticket: None }))
            }
        }
    }
}

impl<'a, B: KernelBackend> Walk<'a, B> {
    /// Over layers that `read` makes one at a time.
    pub(in crate::model) fn reading(
        order: Order,
        read: impl FnMut(usize) -> Result<Layer<B>, Error> + 'a,
    ) -> Self {
        Self { order, source: Source::Read(Box::new(read)), failure: None }
    }
}

impl<B: KernelBackend> Iterator for Walk<'_, B> {
    type Item = Result<(usize, Guard<B>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failure.take().and_then(|failure| absent::take(&failure)) {
            return Some(Err(error));
        }
        let index = match &mut self.order {
            Order::Up(range) => range.next(),
            Order::Down(range) => range.next_back(),
        }?;
        match &mut self.source {
            Source::Held(layers) => {
                let found = layers.get(index)?;
                self.failure = found.as_ref().ok().and_then(|guard| guard.layer.failure());
                Some(found.map(|guard| (index, guard)))
            }
            Source::Read(read) => {
                Some(read(index).map(|layer| (index, Guard { layer: Arc::new(layer), _ticket: None })))
            }
        }
    }
}
