//! Projections of a fetched layer that come when they are used: a layer whose tokens reach few of its experts comes
//! without them, and the router's choice says which are worth their way.
//!
//! The op that asks for a projection cannot fail. One that does not come is zeros there, and the walk over the layers ends
//! with the reason behind that layer ([`Failure`]): what was computed with it is thrown away.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn_tensor::Tensor;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use tune_kernels::KernelBackend;
use tune_kernels::linear::FrozenWeight;

use super::Error;
use super::dtype::{FloatDtype, burn_dtype};
use super::layers::FrozenProjection;
use super::load::Shelf;
use super::stored::{Squares, StoredLayer, StoredProjection};
use crate::adapter::projection::Slot;

/// Where projections wait.
#[derive(Clone)]
pub(super) enum Waiting {
    /// In files.
    Files(Arc<Shelf>),
    /// In host memory.
    Memory(Arc<Vec<StoredLayer>>),
}

impl Waiting {
    /// A layer, with or without its experts.
    pub(super) fn layer(&self, layer: usize, with_experts: bool) -> Result<StoredLayer, Error> {
        match self {
            Self::Files(shelf) => shelf.layer(layer, with_experts),
            Self::Memory(layers) => Ok(match with_experts {
                true => layers[layer].clone(),
                false => layers[layer].without_experts(),
            }),
        }
    }

    fn projection(&self, layer: usize, slot: Slot) -> Result<StoredProjection, Error> {
        let found = match self {
            Self::Files(shelf) => Some(shelf.projection(layer, slot)?),
            Self::Memory(layers) => layers[layer].projections[slot].clone(),
        };
        found.ok_or_else(|| Error::LayerReader { message: format!("projection {slot} is not there") })
    }
}

/// Why a projection did not come; shared by a layer and the walk that hands it out.
pub(super) type Failure = Arc<Mutex<Option<Error>>>;

/// Takes the reason, if there is one.
pub(super) fn take(failure: &Failure) -> Option<Error> {
    failure.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The projections of one layer that are not there yet.
#[derive(Clone)]
pub(super) struct Absent<B: KernelBackend> {
    pub(super) waiting: Waiting,
    pub(super) layer: usize,
    pub(super) dtype: FloatDtype,
    pub(super) device: B::Device,
    pub(super) squares: Squares<B>,
    pub(super) failure: Failure,
}

impl<B: KernelBackend> fmt::Debug for Absent<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Absent(layer {})", self.layer)
    }
}

impl<B: KernelBackend> Absent<B> {
    /// The projections in some slots, with the shapes that they have: read side by side, placed one by one.
    pub(super) fn bring(&self, slots: &[(Slot, [usize; 2])]) -> Vec<FrozenProjection<B>> {
        let read: Vec<_> =
            slots.into_par_iter().map(|(slot, _)| self.waiting.projection(self.layer, *slot)).collect();
        let placed = slots.iter().zip(read).map(|((slot, shape), stored)| {
            let placed = stored.and_then(|stored| stored.place(self.dtype, &self.device));
            match (placed, self.squares.get(*slot)) {
                (Ok(projection), Some(squares)) => projection.with_squares(Arc::clone(squares)),
                (Ok(projection), None) => projection,
                (Err(error), _) => {
                    self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    let zeros = Tensor::zeros(*shape, (&self.device, burn_dtype(self.dtype)));
                    FrozenProjection::new(FrozenWeight::Dense(zeros), None)
                }
            }
        });
        placed.collect()
    }
}
