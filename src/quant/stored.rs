//! Weights that a checkpoint holds in 4 bits, in any format that can be read.

use tune_kernels::nf4::Quantized;

use super::spec::Spec;
use super::{Error, bitsandbytes, mxfp4};
use crate::assets::WeightFiles;

/// A weight in 4 bits whose numbers are not read yet.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// Quantized by bitsandbytes.
    Bitsandbytes(bitsandbytes::Stored),
    /// An expert in MXFP4.
    Mxfp4(mxfp4::Stored),
}

impl Stored {
    /// Looks whether the weight named `weight` is stored in 4 bits; checks all its tensors if so.
    ///
    /// # Errors
    /// It is stored in a way that cannot be read, or its tensors contradict each other or `shape`.
    pub fn find(weights: &WeightFiles, weight: &str, shape: [usize; 2]) -> Result<Option<Self>, Error> {
        if let Some(stored) = bitsandbytes::Stored::find(weights, weight, shape)? {
            return Ok(Some(Self::Bitsandbytes(stored)));
        }
        Ok(mxfp4::Stored::find(weights, weight, shape)?.map(Self::Mxfp4))
    }

    /// The tensors that it is made of.
    pub fn tensors(&self) -> Vec<String> {
        match self {
            Self::Bitsandbytes(stored) => stored.tensors().into_iter().collect(),
            Self::Mxfp4(stored) => stored.tensors().into(),
        }
    }

    /// Checks that it is what a recipe asks for; a format that no recipe names is taken as it is.
    ///
    /// # Errors
    /// The recipe has another quantization.
    pub fn agrees(&self, spec: Spec) -> Result<(), Error> {
        match self {
            Self::Bitsandbytes(stored) => stored.agrees(spec),
            Self::Mxfp4(_) => Ok(()),
        }
    }

    /// Its blocks in a recipe's terms; `None` where a recipe has none.
    pub fn blocks_of(&self) -> Option<Spec> {
        match self {
            Self::Bitsandbytes(stored) => Some(stored.blocks_of()),
            Self::Mxfp4(_) => None,
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// A file can no longer be read, or its contents are not what they should be.
    pub fn read(&self, weights: &WeightFiles) -> Result<Quantized, Error> {
        match self {
            Self::Bitsandbytes(stored) => stored.read(weights),
            Self::Mxfp4(stored) => stored.read(weights),
        }
    }
}
