//! Unpacking NF4 rows on the CPU, a tile at a time into a caller's scratch.

use std::ops::Range;

use burn_flex::{Flex, FlexTensor};
use burn_tensor::Tensor;

use super::quantized::{Absmax, Quantized};
use super::weight::{DeviceAbsmax, Nf4Ops, Nf4Weight};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::{parallel, tensor, vectorized};

/// Borrowed parts of an NF4 matrix.
#[derive(Clone, Copy)]
pub(crate) struct Nf4Rows<'a> {
    pub(crate) shape: [usize; 2],
    pub(crate) block_size: usize,
    pub(crate) codebook: [f32; 16],
    pub(crate) codes: &'a [u8],
    absmax: Scales<'a>,
}

#[derive(Clone, Copy)]
enum Scales<'a> {
    F32(&'a [f32]),
    Double { codes: &'a [u8], nested: &'a [f32], map: &'a [f32], offset: f32, block_size: usize },
}

/// The scales of blocks, packed or not.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) enum BlockScales<'a> {
    /// One for each block.
    Plain(&'a [f32]),
    /// `map[codes[b]] · nested[b >> shift] + offset`; `nested` has one for every code.
    Nested { codes: &'a [u8], nested: &'a [f32], map: &'a [f32; 256], offset: f32, shift: u32 },
}

#[cfg(target_arch = "x86_64")]
impl BlockScales<'_> {
    /// How many blocks there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Plain(scales) => scales.len(),
            Self::Nested { codes, .. } => codes.len(),
        }
    }

    /// The scales of runs from `first` on, `1 << per_block` of which make a block.
    ///
    /// # Safety
    /// There are such runs.
    #[inline(always)]
    pub(crate) unsafe fn fill(&self, first: usize, per_block: u32, scales: &mut [f32]) {
        // SAFETY: as the caller promises; `nested` is as long as it says.
        unsafe {
            match *self {
                Self::Plain(values) => {
                    for (run, scale) in scales.iter_mut().enumerate() {
                        *scale = *values.get_unchecked((first + run) >> per_block);
                    }
                }
                Self::Nested { codes, nested, map, offset, shift } => {
                    for (run, scale) in scales.iter_mut().enumerate() {
                        let block = (first + run) >> per_block;
                        let level = map[usize::from(*codes.get_unchecked(block))];
                        let value = level * nested.get_unchecked(block >> shift) + offset;
                        // One by one: the gathers that compilers make of this loop take three times as long.
                        std::ptr::write_volatile(scale, value);
                    }
                }
            }
        }
    }
}

/// The tensors of a device weight, held so that [`Nf4Rows`] can borrow them.
pub(crate) struct Nf4Tensors {
    codes: FlexTensor,
    absmax: FlexTensor,
    nested: Option<(FlexTensor, FlexTensor)>,
}

impl Nf4Tensors {
    pub(crate) fn new(weight: &Nf4Weight<Flex>) -> Self {
        let codes = weight.codes.clone().into_primitive();
        match &weight.absmax {
            DeviceAbsmax::F32(values) => {
                Self { codes, absmax: tensor::primitive(values.clone()), nested: None }
            }
            DeviceAbsmax::Double { codes: absmax, nested_absmax, nested_map, .. } => Self {
                codes,
                absmax: absmax.clone().into_primitive(),
                nested: Some((
                    tensor::primitive(nested_absmax.clone()),
                    tensor::primitive(nested_map.clone()),
                )),
            },
        }
    }

    pub(crate) fn rows<'a>(&'a self, weight: &Nf4Weight<Flex>) -> Nf4Rows<'a> {
        let absmax = match (&self.nested, &weight.absmax) {
            (Some((nested, map)), DeviceAbsmax::Double { offset, nested_block_size, .. }) => Scales::Double {
                codes: self.absmax.bytes(),
                nested: nested.storage(),
                map: map.storage(),
                offset: *offset,
                block_size: *nested_block_size,
            },
            _ => Scales::F32(self.absmax.storage()),
        };
        let (shape, block_size, codebook) = (weight.shape, weight.block_size, weight.codebook);
        Nf4Rows { shape, block_size, codebook, codes: self.codes.bytes(), absmax }
    }
}

impl Nf4Ops for Flex {
    fn nf4_dequantize(weight: &Nf4Weight<Flex>) -> Tensor<Flex, 2> {
        let [out, input] = weight.shape;
        let mut dense = vec![0.0f32; out * input];
        let tensors = Nf4Tensors::new(weight);
        let rows = tensors.rows(weight);
        let chunk = (1usize << 16).div_ceil(input.max(1));
        let tasks: Vec<_> = dense.chunks_mut((chunk * input).max(1)).enumerate().collect();
        parallel::for_each(tasks, out * input, |(index, dense)| {
            let start = index * chunk;
            rows.fill(start..(start + chunk).min(out), 0..input, dense);
        });
        tensor::from_vec(dense, weight.shape)
    }
}

impl Quantized {
    /// The weights in f32, `[out, in]` row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let [out, input] = self.shape;
        let mut weights = vec![0.0; out * input];
        Nf4Rows::from_host(self).fill(0..out, 0..input, &mut weights);
        weights
    }

    /// One f32 scale per block, double quantization undone.
    pub fn absmax_f32(&self) -> Vec<f32> {
        match &self.absmax {
            Absmax::F32(values) => values.clone(),
            Absmax::Double { .. } => {
                let rows = Nf4Rows::from_host(self);
                (0..self.absmax.len()).map(|block| rows.block_scale(block)).collect()
            }
        }
    }
}

impl<'a> Nf4Rows<'a> {
    fn from_host(quantized: &'a Quantized) -> Self {
        let absmax = match &quantized.absmax {
            Absmax::F32(values) => Scales::F32(values),
            Absmax::Double { codes, nested_absmax, nested_map, offset, nested_block_size } => {
                Scales::Double {
                    codes,
                    nested: nested_absmax,
                    map: &nested_map[..],
                    offset: *offset,
                    block_size: *nested_block_size,
                }
            }
        };
        let (shape, block_size, codebook) = (quantized.shape, quantized.block_size, quantized.codebook);
        Self { shape, block_size, codebook, codes: &quantized.codes, absmax }
    }

    /// Whether every run of `length` weights that begins at a multiple of it in its row begins on a byte, ends in
    /// its row, and has one scale, in f32.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "the AVX-512 filler asks"))]
    pub(crate) fn has_runs_of(&self, length: usize) -> bool {
        self.shape[1].is_multiple_of(length)
            && self.block_size.is_power_of_two()
            && self.block_size.is_multiple_of(length)
            && matches!(self.absmax, Scales::F32(_))
    }

    /// One scale per block; none while they are packed (see [`Self::expand`]).
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "the AVX-512 filler asks"))]
    pub(crate) fn scales(&self) -> &'a [f32] {
        match self.absmax {
            Scales::F32(values) => values,
            Scales::Double { .. } => &[],
        }
    }

    /// The scales of all blocks in f32, where double quantization has packed them: for [`Self::with_scales`].
    pub(crate) fn expand(&self) -> Option<Buffer<f32>> {
        let Scales::Double { codes, nested, map, offset, block_size } = self.absmax else { return None };
        let mut scales = pool::take::<f32>(codes.len());
        // Whole nested blocks, so that each task multiplies by one nested scale at a time.
        let chunk = block_size * (1usize << 14).div_ceil(block_size);
        let tasks = scales.chunks_mut(chunk).zip(codes.chunks(chunk)).enumerate().collect();
        parallel::for_each(tasks, codes.len(), |(task, (scales, codes))| {
            let nested = &nested[task * chunk / block_size..];
            let runs = scales.chunks_mut(block_size).zip(codes.chunks(block_size)).zip(nested);
            for ((scales, codes), nested) in runs {
                for (scale, code) in scales.iter_mut().zip(codes) {
                    *scale = map[usize::from(*code)] * nested + offset;
                }
            }
        });
        Some(scales)
    }

    /// The scales of blocks as kernels read them, one at a time.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn block_scales(&self) -> Option<BlockScales<'a>> {
        match self.absmax {
            Scales::F32(values) => Some(BlockScales::Plain(values)),
            Scales::Double { codes, nested, map, offset, block_size } => {
                let map = map.try_into().ok()?;
                let fits = block_size.is_power_of_two() && nested.len() * block_size >= codes.len();
                let shift = block_size.trailing_zeros();
                fits.then_some(BlockScales::Nested { codes, nested, map, offset, shift })
            }
        }
    }

    /// The same matrix with scales that [`Self::expand`] gave.
    pub(crate) fn with_scales<'s>(&self, scales: Option<&'s [f32]>) -> Nf4Rows<'s>
    where
        'a: 's,
    {
        match scales {
            Some(scales) => Nf4Rows { absmax: Scales::F32(scales), ..*self },
            None => *self,
        }
    }

    /// Scale of one block.
    #[inline]
    fn block_scale(&self, block: usize) -> f32 {
        match self.absmax {
            Scales::F32(values) => values[block],
            Scales::Double { codes, nested, map, offset, block_size } => {
                map[usize::from(codes[block])] * nested[block / block_size] + offset
            }
        }
    }

    /// Writes the weights of `rows` × `columns` to `out`, row-major without gaps.
    pub(crate) fn fill(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        if columns.is_empty() {
            return;
        }
        let width = columns.len();
        for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
            let mut flat = row * self.shape[1] + columns.start;
            let mut out = out;
            while !out.is_empty() {
                let block = flat / self.block_size;
                let run = ((block + 1) * self.block_size - flat).min(out.len());
                let (here, rest) = out.split_at_mut(run);
                let scale = self.block_scale(block);
                let levels = self.codebook.map(|level| level * scale);
                unpack(&levels, self.codes, flat, here);
                flat += run;
                out = rest;
            }
        }
    }
}

vectorized! {
    /// Writes `levels[code]` for the codes from weight `flat` on.
    fn unpack(levels: &[f32; 16], codes: &[u8], flat: usize, out: &mut [f32]) {
        // An odd start is the low nibble of its byte.
        let (head, out) = out.split_at_mut((flat % 2).min(out.len()));
        if let [first] = head {
            *first = levels[usize::from(codes[flat / 2] & 15)];
        }
        let flat = flat + head.len();
        let bytes = &codes[flat / 2..(flat + out.len()).div_ceil(2)];
        let mut pairs = out.chunks_exact_mut(2);
        for (pair, byte) in pairs.by_ref().zip(bytes) {
            pair[0] = levels[usize::from(byte >> 4)];
            pair[1] = levels[usize::from(byte & 15)];
        }
        if let ([last], Some(byte)) = (pairs.into_remainder(), bytes.last()) {
            *last = levels[usize::from(byte >> 4)];
        }
    }
}
