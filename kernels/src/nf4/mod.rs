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
mod quantized;
pub mod reference;
mod weight;

pub use codebook::{CODEBOOK, FP4_CODEBOOK, MIDPOINTS, dynamic_map};
pub use quantize::quantize;
pub use quantized::{Absmax, Error, NESTED_BLOCK_SIZE, Quantized};
pub use weight::{Nf4Ops, Nf4Weight};
