//! Experts that a checkpoint holds in MXFP4, as gpt-oss is released: read as they are.
//!
//! A block of 32 weights along a row shares a power of two; each weight is one of 16 levels. Of a module `M` (`gate_up_proj`,
//! `down_proj`) with `rows` outputs for each of `experts`, G = in / 32:
//!
//! | tensor | content |
//! |---|---|
//! | `M_blocks` | U8 `[experts, rows, G, 16]`: two codes a byte, the even weight in the low nibble |
//! | `M_scales` | U8 `[experts, rows, G]`: the exponent of the block, plus 127 |
//!
//! Rows of gate and up stand in turns. OCP, *Microscaling Formats (MX) v1.0*. The levels, blocks and scales are those of a
//! [`Quantized`] with its own codebook, so products read them as they read NF4.

use tune_kernels::nf4::{Absmax, NESTED_BLOCK_SIZE, Quantized};

use super::Error;
use crate::assets::{Dtype, WeightFiles};

/// Weights of a block.
pub const BLOCK: usize = 32;

/// E2M1: a sign, two bits of exponent, one of mantissa.
const CODEBOOK: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// A weight of an expert; its numbers are not read yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    weight: String,
    blocks: String,
    scales: String,
    expert: usize,
    /// The first of its rows among those of the expert, and from one to the next.
    rows: (usize, usize),
    shape: [usize; 2],
}

impl Stored {
    /// Looks whether the weight named `weight` is stored so.
    ///
    /// # Errors
    /// It is, and its tensors contradict each other or `shape`.
    pub fn find(weights: &WeightFiles, weight: &str, shape: [usize; 2]) -> Result<Option<Self>, Error> {
        let Some((before, inside)) = weight.rsplit_once(".experts.") else { return Ok(None) };
        let parts = inside.split_once('.').and_then(|(expert, name)| Some((expert.parse().ok()?, name)));
        let (expert, stacked, rows): (usize, _, _) = match parts {
            Some((expert, "gate_proj.weight")) => (expert, "gate_up_proj", (0, 2)),
            Some((expert, "up_proj.weight")) => (expert, "gate_up_proj", (1, 2)),
            Some((expert, "down_proj.weight")) => (expert, "down_proj", (0, 1)),
            _ => return Ok(None),
        };
        let [blocks, scales] = ["blocks", "scales"].map(|part| format!("{before}.experts.{stacked}_{part}"));
        let Some(found) = weights.info(&blocks) else { return Ok(None) };
        let fail = |message: String| Error::FourBit { weight: weight.to_owned(), message };
        let [out, input] = shape;
        let groups = input / BLOCK;
        let fits = |shape: &[usize], more: &[usize]| {
            let (experts, rest) = shape.split_first().map_or((0, shape), |(experts, rest)| (*experts, rest));
            expert < experts && rest == [&[out * rows.1, groups], more].concat()
        };
        if !input.is_multiple_of(BLOCK) || found.dtype != Dtype::U8 || !fits(&found.shape, &[BLOCK / 2]) {
            return Err(fail(format!("`{blocks}` is {:?} {:?}", found.dtype, found.shape)));
        }
        match weights.info(&scales) {
            Some(found) if found.dtype == Dtype::U8 && fits(&found.shape, &[]) => {}
            Some(found) => return Err(fail(format!("`{scales}` is {:?} {:?}", found.dtype, found.shape))),
            None => return Err(fail(format!("`{scales}` is missing"))),
        }
        Ok(Some(Self { weight: weight.to_owned(), blocks, scales, expert, rows, shape }))
    }

    /// The tensors that it lies in.
    pub fn tensors(&self) -> [String; 2] {
        [self.blocks.clone(), self.scales.clone()]
    }

    /// Reads the weight.
    ///
    /// # Errors
    /// A file can no longer be read, or a scale is no number.
    pub fn read(&self, weights: &WeightFiles) -> Result<Quantized, Error> {
        let codes = self.rows_of(&weights.read_slice(&self.blocks, self.expert)?);
        let scales = self.rows_of(&weights.read_slice(&self.scales, self.expert)?);
        if scales.contains(&u8::MAX) {
            let message = format!("a scale of `{}` is not a number", self.scales);
            return Err(Error::FourBit { weight: self.weight.clone(), message });
        }
        let mut powers = Box::new([0.0; 256]);
        powers.iter_mut().zip(-127..).for_each(|(power, exponent)| *power = f32::powi(2.0, exponent));
        Ok(Quantized {
            shape: self.shape,
            block_size: BLOCK,
            codebook: CODEBOOK,
            codes: codes.into_iter().map(|codes| codes.rotate_left(4)).collect(),
            absmax: Absmax::Double {
                nested_absmax: vec![1.0; scales.len().div_ceil(NESTED_BLOCK_SIZE)],
                codes: scales,
                nested_map: powers,
                offset: 0.0,
                nested_block_size: NESTED_BLOCK_SIZE,
            },
        })
    }

    /// This weight's rows of an expert's bytes.
    fn rows_of(&self, bytes: &[u8]) -> Vec<u8> {
        let (first, step) = self.rows;
        let width = bytes.len() / (self.shape[0] * step).max(1);
        bytes.chunks_exact(width.max(1)).skip(first).step_by(step).flatten().copied().collect()
    }
}
