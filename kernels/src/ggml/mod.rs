//! The block formats in which GGUF files keep weights, written as ggml's reference quantizers write them.
//!
//! A row of numbers is cut into blocks; each block is coded by itself, so tensors are coded on all cores and the bytes
//! do not depend on how many there are. With `q` the integer codes:
//!
//! | type | block | value | bytes |
//! |---|---|---|---|
//! | `f32`, `f16`, `bf16` | 1 | the number, rounded to nearest, ties to even | 4, 2, 2 |
//! | `q8_0` | 32 | `d·q`, q in −127..127 | 34 |
//! | `q4_0`, `q5_0` | 32 | `d·(q−8)`, `d·(q−16)` | 18, 22 |
//! | `q5_1` | 32 | `d·q + m` | 24 |
//! | `q4_k`, `q5_k` | 8 × 32 | `d·s·q − dmin·m`, 6-bit s and m for each 32 | 144, 176 |
//! | `q6_k` | 16 × 16 | `d·s·q`, 8-bit s for each 16 | 210 |
//! | `mxfp4` | 32 | `2ᵉ·q`, q one of 16 levels, 8-bit e | 17 |
//!
//! d, dmin and m of a block are f16. Formats and search for scales: ggml's `ggml-quants.c` (`quantize_row_*_ref`); the
//! order of every f32 operation is kept, so the bytes are those of a ggml built for plain x86-64 (no fused
//! multiply-add), which `tests/golden/gguf` proves. Refuses to know files and tensor names.

mod blocks;
mod numbers;
mod super_blocks;
#[cfg(test)]
mod tests;

use half::{bf16, f16};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

/// How the numbers of a tensor are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockType {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 4 bits, a scale for 32.
    Q4_0,
    /// 5 bits, a scale for 32.
    Q5_0,
    /// 5 bits, a scale and a minimum for 32.
    Q5_1,
    /// 8 bits, a scale for 32.
    Q8_0,
    /// 4 bits, quantized scales and minima.
    Q4K,
    /// 5 bits, quantized scales and minima.
    Q5K,
    /// 6 bits, quantized scales.
    Q6K,
    /// 4 bits of floating point, a power of two for 32.
    Mxfp4,
}

/// A number that its block's format cannot hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutOfRange {
    /// First position of the block in the flattened tensor.
    pub element: usize,
    /// The number of largest magnitude in the block.
    pub value: f32,
}

impl BlockType {
    /// Every type.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Mxfp4,
    ];

    /// Its name in ggml.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q4_0 => "q4_0",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_K",
            Self::Q5K => "q5_K",
            Self::Q6K => "q6_K",
            Self::Mxfp4 => "mxfp4",
        }
    }

    /// Its number in ggml (`enum ggml_type`).
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
            Self::Mxfp4 => 39,
        }
    }

    /// The type with a number in ggml, if it is one of these.
    pub fn of_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.id() == id)
    }

    /// Numbers in a block; the length of a row is a multiple of it.
    pub fn block_size(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Mxfp4 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Mxfp4 => 17,
        }
    }

    /// Bytes of `elements` numbers, whole blocks.
    pub fn bytes(self, elements: usize) -> usize {
        elements.div_ceil(self.block_size()) * self.block_bytes()
    }

    /// Codes whole blocks.
    ///
    /// # Errors
    /// The first block with a number that is not finite, or whose scale (for the 16-bit floats: whose number) is above
    /// what the format can hold.
    pub fn encode(self, values: &[f32]) -> Result<Vec<u8>, OutOfRange> {
        let mut bytes = vec![0; self.bytes(values.len())];
        let blocks = blocks_at_once(self);
        let (elements, length) = (blocks * self.block_size(), blocks * self.block_bytes());
        let pieces = bytes.par_chunks_mut(length).zip(values.par_chunks(elements)).enumerate();
        let faults: Vec<Option<OutOfRange>> = pieces
            .map(|(piece, (bytes, values))| {
                let inside = bytes.chunks_exact_mut(self.block_bytes()).zip(values.chunks(self.block_size()));
                for (block, (bytes, values)) in inside.enumerate() {
                    self.encode_block(values, bytes);
                    if !self.is_sound(values, bytes) {
                        let element = piece * elements + block * self.block_size();
                        return Some(OutOfRange { element, value: largest(values) });
                    }
                }
                None
            })
            .collect();
        match faults.into_iter().flatten().next() {
            Some(fault) => Err(fault),
            None => Ok(bytes),
        }
    }

    /// The numbers that whole blocks stand for.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / self.block_bytes() * self.block_size()];
        let blocks = blocks_at_once(self);
        let (elements, length) = (blocks * self.block_size(), blocks * self.block_bytes());
        values.par_chunks_mut(elements).zip(bytes.par_chunks(length)).for_each(|(values, bytes)| {
            let inside =
                values.chunks_exact_mut(self.block_size()).zip(bytes.chunks_exact(self.block_bytes()));
            for (values, bytes) in inside {
                self.decode_block(bytes, values);
            }
        });
        values
    }

    fn encode_block(self, values: &[f32], bytes: &mut [u8]) {
        match self {
            Self::F32 => bytes.copy_from_slice(&values[0].to_le_bytes()),
            Self::F16 => bytes.copy_from_slice(&f16::from_f32(values[0]).to_le_bytes()),
            Self::Bf16 => bytes.copy_from_slice(&bf16::from_f32(values[0]).to_le_bytes()),
            Self::Q4_0 => blocks::encode_q4_0(values, bytes),
            Self::Q5_0 => blocks::encode_q5_0(values, bytes),
            Self::Q5_1 => blocks::encode_q5_1(values, bytes),
            Self::Q8_0 => blocks::encode_q8_0(values, bytes),
            Self::Q4K => super_blocks::encode_q4_k(values, bytes),
            Self::Q5K => super_blocks::encode_q5_k(values, bytes),
            Self::Q6K => super_blocks::encode_q6_k(values, bytes),
            Self::Mxfp4 => blocks::encode_mxfp4(values, bytes),
        }
    }

    fn decode_block(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Self::F32 => {
                values[0] = f32::from_bits(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            Self::F16 => values[0] = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Bf16 => values[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Q4_0 => blocks::decode_q4_0(bytes, values),
            Self::Q5_0 => blocks::decode_q5_0(bytes, values),
            Self::Q5_1 => blocks::decode_q5_1(bytes, values),
            Self::Q8_0 => blocks::decode_q8_0(bytes, values),
            Self::Q4K => super_blocks::decode_q4_k(bytes, values),
            Self::Q5K => super_blocks::decode_q5_k(bytes, values),
            Self::Q6K => super_blocks::decode_q6_k(bytes, values),
            Self::Mxfp4 => blocks::decode_mxfp4(bytes, values),
        }
    }

    /// Whether all numbers went in finite, and every f16 of the block came out finite.
    fn is_sound(self, values: &[f32], bytes: &[u8]) -> bool {
        let finite = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).is_finite();
        values.iter().all(|value| value.is_finite())
            && match self {
                Self::F32 | Self::Mxfp4 => true,
                Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).is_finite(),
                Self::F16 | Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => finite(0),
                Self::Q5_1 | Self::Q4K | Self::Q5K => finite(0) && finite(2),
                Self::Q6K => finite(super_blocks::Q6_K_SCALE),
            }
    }
}

/// Blocks that one thread codes in one go.
fn blocks_at_once(kind: BlockType) -> usize {
    const NUMBERS: usize = 1 << 13;
    NUMBERS / kind.block_size()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().copied().max_by(|left, right| left.abs().total_cmp(&right.abs())).unwrap_or_default()
}
