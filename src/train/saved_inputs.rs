//! Where the inputs of layers wait whose forward pass is run again: on the device, or in host memory beside it. One is
//! copied there behind the work that made it, and back when the backward pass comes to its layer: the same bits.

use burn_tensor::Tensor;
use tune_kernels::{KernelBackend, Parked};

use crate::document::Word;
use crate::model::Error;

/// What the recipe says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SavedInputs {
    /// On the device, unless the run fits only without them.
    #[default]
    Auto,
    /// On the device.
    Device,
    /// In host memory.
    Host,
}

impl Word for SavedInputs {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("device", Self::Device), ("host", Self::Host)];
    const ALIASES: &'static [(&'static str, &'static str)] =
        &[("cpu", "host"), ("true", "host"), ("gpu", "device"), ("false", "device")];
}

/// The input of a layer that is run again.
pub(super) enum SavedInput<B: KernelBackend> {
    Held(Tensor<B, 2>),
    Parked(Parked<B>),
}

impl<B: KernelBackend> SavedInput<B> {
    pub(super) fn new(input: Tensor<B, 2>, on_host: bool) -> Self {
        match on_host {
            true => Self::Parked(B::park(input)),
            false => Self::Held(input),
        }
    }

    /// The input, on the device.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn fetch(self) -> Result<Tensor<B, 2>, Error> {
        match self {
            Self::Held(input) => Ok(input),
            Self::Parked(parked) => parked.fetch().map_err(|message| Error::SavedInput { message }),
        }
    }
}
