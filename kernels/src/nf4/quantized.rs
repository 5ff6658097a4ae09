//! A matrix in 4-bit blocks on the host, as a bitsandbytes checkpoint stores it.

/// Weights of `absmax` that share one scale under double quantization.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// The per-block scales of a [`Quantized`] tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    /// One f32 per block.
    F32(Vec<f32>),
    /// One byte per block: `nested_map[codes[b]] · nested_absmax[b / nested_block_size] + offset`.
    Double {
        /// Index into `nested_map`, one per block.
        codes: Vec<u8>,
        /// Scale of each run of `nested_block_size` codes.
        nested_absmax: Vec<f32>,
        /// The 256 levels, ascending, as read from a file or [`dynamic_map`](super::dynamic_map).
        nested_map: Box<[f32; 256]>,
        /// Added back after scaling.
        offset: f32,
        /// Codes per nested scale; [`NESTED_BLOCK_SIZE`] in every checkpoint seen.
        nested_block_size: usize,
    },
}

impl Absmax {
    /// Number of blocks.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Double { codes, .. } => codes.len(),
        }
    }

    /// Whether the tensor has no blocks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A matrix in 4-bit blocks on the host, as a bitsandbytes checkpoint stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Weights per absmax.
    pub block_size: usize,
    /// The 16 levels: [`CODEBOOK`](super::CODEBOOK), [`FP4_CODEBOOK`](super::FP4_CODEBOOK), or whatever a file holds.
    pub codebook: [f32; 16],
    /// Two codes a byte, the even weight in the high nibble; `ceil(out · in / 2)` bytes.
    pub codes: Vec<u8>,
    /// Scales, one per block.
    pub absmax: Absmax,
}

/// A [`Quantized`] whose parts do not fit each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too few or too many code bytes.
    #[error("{found} bytes of 4-bit codes, but {out}x{input} weights need {expected}", out = shape[0], input = shape[1])]
    Codes {
        /// `[out, in]`.
        shape: [usize; 2],
        /// Bytes needed.
        expected: usize,
        /// Bytes there.
        found: usize,
    },
    /// Too few or too many scales.
    #[error("{found} block scales, but {out}x{input} weights in blocks of {block_size} need {expected}", out = shape[0], input = shape[1])]
    Absmax {
        /// `[out, in]`.
        shape: [usize; 2],
        /// Weights per absmax.
        block_size: usize,
        /// Scales needed.
        expected: usize,
        /// Scales there.
        found: usize,
    },
    /// Too few or too many nested scales.
    #[error(
        "{found} nested scales, but {blocks} block scales in runs of {nested_block_size} need {expected}"
    )]
    NestedAbsmax {
        /// Block scales.
        blocks: usize,
        /// Block scales per nested scale.
        nested_block_size: usize,
        /// Nested scales needed.
        expected: usize,
        /// Nested scales there.
        found: usize,
    },
    /// A block size that is zero or odd: a block would not begin on a byte.
    #[error("a block size of {0} (expected an even number of weights, at least 2)")]
    BlockSize(usize),
    /// A nested block size of zero.
    #[error("a nested block size of 0")]
    NestedBlockSize,
    /// The number of weights does not fit in memory.
    #[error("a shape of {0}x{1} is too large")]
    Shape(usize, usize),
}

impl Quantized {
    /// Checks that codes and scales have the lengths that shape and block sizes ask for.
    ///
    /// # Errors
    /// The first part that does not fit.
    pub fn validate(&self) -> Result<(), Error> {
        let [out, input] = self.shape;
        let weights = out.checked_mul(input).ok_or(Error::Shape(out, input))?;
        if self.block_size == 0 || !self.block_size.is_multiple_of(2) {
            return Err(Error::BlockSize(self.block_size));
        }
        let expected = weights.div_ceil(2);
        if self.codes.len() != expected {
            return Err(Error::Codes { shape: self.shape, expected, found: self.codes.len() });
        }
        let expected = weights.div_ceil(self.block_size);
        if self.absmax.len() != expected {
            let (shape, block_size, found) = (self.shape, self.block_size, self.absmax.len());
            return Err(Error::Absmax { shape, block_size, expected, found });
        }
        if let Absmax::Double { codes, nested_absmax, nested_block_size, .. } = &self.absmax {
            if *nested_block_size == 0 {
                return Err(Error::NestedBlockSize);
            }
            let expected = codes.len().div_ceil(*nested_block_size);
            if nested_absmax.len() != expected {
                let (blocks, found) = (codes.len(), nested_absmax.len());
                return Err(Error::NestedAbsmax {
                    blocks,
                    nested_block_size: *nested_block_size,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Bytes of codes, scales and level tables.
    pub fn bytes(&self) -> usize {
        let absmax = match &self.absmax {
            Absmax::F32(values) => 4 * values.len(),
            Absmax::Double { codes, nested_absmax, .. } => codes.len() + 4 * nested_absmax.len() + 4 * 256,
        };
        self.codes.len() + absmax + 4 * 16
    }
}
