//! NF4: frozen weights in 4 bits, bit-compatible with bitsandbytes checkpoints.
//!
//! Owns the packed format on the host ([`Quantized`]), its quantizer, and the same bytes on a device
//! ([`Nf4Weight`]). It refuses to know files, keys and models; products with such a weight live in
//! [`crate::linear`].
//!
//! With `n = out · in` weights flattened row-major and blocks of `block_size` over that flat order (they may
//! cross row ends; the last may be short):
//!
//! ```text
//! absmax[b] = max |w| over block b
//! code[i]   = number of midpoints t with w[i] · (1 / absmax[i / block_size]) > t      (ties go down)
//! w'[i]     = codebook[code[i]] · absmax[i / block_size]                              (f32)
//! ```
//!
//! Weight `2j` is the high nibble of byte `j`, weight `2j + 1` the low one; the low nibble that pads an odd count
//! holds the code of 0. Double quantization stores `absmax` in 8 bits, in blocks of 256:
//!
//! ```text
//! offset     = mean of absmax (f32, summed pairwise)
//! nested[k]  = max |absmax − offset| over nested block k
//! code8[b]   = number of map midpoints below (absmax[b] − offset) · (1 / nested)
//! absmax'[b] = map[code8[b]] · nested[b / 256] + offset                               (f32, two roundings)
//! ```
//!
//! Dettmers et al., *QLoRA* (<https://arxiv.org/abs/2305.14314>); the 8-bit map is from *8-bit Optimizers via
//! Block-wise Quantization* (<https://arxiv.org/abs/2110.02861>).

mod codebook;
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
mod quantize;
pub mod reference;
mod weight;

pub use codebook::{CODEBOOK, FP4_CODEBOOK, MIDPOINTS, dynamic_map};
pub use quantize::quantize;
pub use weight::Nf4Weight;

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
        /// The 256 levels, ascending, as read from a file or [`dynamic_map`].
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

    /// Whether there is no block at all.
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
    /// The 16 levels: [`CODEBOOK`], [`FP4_CODEBOOK`], or whatever a file holds.
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

    /// The weights in f32, `[out, in]` row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let [out, input] = self.shape;
        let mut weights = vec![0.0; out * input];
        cpu::Nf4Rows::from_host(self).fill(0..out, 0..input, &mut weights);
        weights
    }

    /// One f32 scale per block, double quantization undone.
    pub fn absmax_f32(&self) -> Vec<f32> {
        match &self.absmax {
            Absmax::F32(values) => values.clone(),
            Absmax::Double { .. } => {
                let rows = cpu::Nf4Rows::from_host(self);
                (0..self.absmax.len()).map(|block| rows.block_scale(block)).collect()
            }
        }
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
