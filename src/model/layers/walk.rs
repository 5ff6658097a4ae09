//! The layers of a decoder behind one door: all computation walks them, up or down, and holds one at a time.
//!
//! A walk knows its order before it begins, and hands out a guard for each layer. Nothing holds a layer beyond its guard,
//! so that where layers come from (memory, or files in which they are read one by one) is decided here alone.

use std::ops::{Deref, Range};
use std::sync::Arc;

use tune_kernels::KernelBackend;

use super::Layer;
use crate::model::Error;

/// The layers of a decoder. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Layers<B: KernelBackend> {
    resident: Vec<Arc<Layer<B>>>,
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
}

enum Source<'a, B: KernelBackend> {
    /// All layers lie on the device.
    Resident(&'a [Arc<Layer<B>>]),
    /// Each layer is read when the walk comes to it.
    Read(Box<dyn FnMut(usize) -> Result<Layer<B>, Error> + 'a>),
}

/// A layer for as long as it is computed with.
#[derive(Debug)]
pub struct Guard<B: KernelBackend> {
    layer: Arc<Layer<B>>,
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
        Self { resident: layers.into_iter().map(Arc::new).collect() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.resident.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.resident.is_empty()
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        self.resident.iter().map(|layer| layer.bytes()).sum()
    }

    /// Every layer, from the embeddings up.
    pub fn up(&self) -> Walk<'_, B> {
        self.walk(Order::Up(0..self.len()))
    }

    /// Some layers in some order.
    pub fn walk(&self, order: Order) -> Walk<'_, B> {
        Walk { order, source: Source::Resident(&self.resident) }
    }
}

impl<'a, B: KernelBackend> Walk<'a, B> {
    /// Over layers that `read` makes one at a time.
    pub(in crate::model) fn reading(
        order: Order,
        read: impl FnMut(usize) -> Result<Layer<B>, Error> + 'a,
    ) -> Self {
        Self { order, source: Source::Read(Box::new(read)) }
    }
}

impl<B: KernelBackend> Iterator for Walk<'_, B> {
    type Item = Result<(usize, Guard<B>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = match &mut self.order {
            Order::Up(range) => range.next(),
            Order::Down(range) => range.next_back(),
        }?;
        match &mut self.source {
            Source::Resident(layers) => Some(Ok((index, Guard { layer: Arc::clone(layers.get(index)?) }))),
            Source::Read(read) => Some(read(index).map(|layer| (index, Guard { layer: Arc::new(layer) }))),
        }
    }
}
