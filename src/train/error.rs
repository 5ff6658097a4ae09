//! Why training stopped before its end.

use std::path::PathBuf;

use super::divergence::Fault;
use super::folder::FolderError;
use super::team::TeamError;
use crate::adapter;
use crate::checkpoint;
use crate::data::error::Error as DataError;
use crate::model;

/// Why training stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// A row could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The run folder could not be written.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A checkpoint could not be written.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The model cannot take a batch.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The adapters and their gradients do not fit together.
    #[error(transparent)]
    Adapter(#[from] adapter::Error),
    /// The device failed.
    #[error("{device} failed: {message}")]
    Device {
        /// The device's name.
        device: String,
        /// The error of its runtime.
        message: String,
    },
    /// The ranks cannot go on together.
    #[error(transparent)]
    Team(#[from] TeamError),
    /// The loss or a gradient is not finite. The newest checkpoint holds the state before this step.
    #[error("{fault}")]
    Diverged {
        /// The step, the value, and the rows it was computed from.
        fault: Fault,
        /// The checkpoint of the step before, where there is one.
        checkpoint: Option<PathBuf>,
    },
}

impl FitError {
    /// `device` failed with its runtime's `message`.
    pub fn device(device: &str, message: String) -> Self {
        Self::Device { device: device.to_owned(), message }
    }

    /// The same; a failure of the device that the model met, which does not know its name, is `device`'s.
    pub(super) fn of(self, device: &str) -> Self {
        match self {
            Self::Model(model::Error::Device { layer, message }) => {
                Self::device(device, format!("layer {layer} could not be placed: {message}"))
            }
            Self::Model(model::Error::SavedInput { message }) => Self::device(device, message),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_fails_under_a_fetched_layer_is_named() {
        let failed = model::Error::Device { layer: 3, message: "it was lost".to_owned() };
        let named = FitError::from(failed).of("cuda:1");
        assert_eq!(named.to_string(), "cuda:1 failed: layer 3 could not be placed: it was lost");
        let reader = FitError::from(model::Error::LayerReader { message: "no thread".to_owned() });
        assert!(matches!(reader.of("cuda:1"), FitError::Model(_)));
    }
}
