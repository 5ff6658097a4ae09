//! Weights that bitsandbytes already quantized to 4 bits, read from a checkpoint as they are.
//!
//! Whether a weight is quantized is decided tensor by tensor, by the presence of its quantization state; the
//! `quantization_config` of config.json is not asked, so mixed checkpoints need nothing special. Layout for a
//! weight `w` of n = out · in numbers in blocks of B:
//!
//! | tensor | content |
//! |---|---|
//! | `w` | two codes a byte, high nibble first, over the flattened matrix; any storage dtype, taken as bytes |
//! | `w.absmax` | F32 `[ceil(n/B)]`, or U8 codes when double-quantized |
//! | `w.quant_map` | F32 `[16]`, the codebook |
//! | `w.nested_absmax`, `w.nested_quant_map` | F32, double quantization only |
//! | `w.quant_state.bitsandbytes__nf4` (`__fp4`) | U8, a JSON text |
//!
//! The state also names the dtype of the original weight; bitsandbytes rounds to it after dequantizing, here the
//! numbers go from f32 to the compute dtype in one rounding.

pub mod write;

use serde::Deserialize;
use tune_kernels::nf4::{Absmax, Quantized};

use super::Error;
use super::spec::Spec;
use crate::assets::{Dtype, TensorInfo, WeightFiles};

/// Longest quantization state read; real ones have about 200 bytes.
const STATE_LIMIT: u64 = 1 << 16;

/// The 4-bit data types of bitsandbytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit float.
    Fp4,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }
}

/// A 4-bit weight whose tensors are all there and fit each other; its numbers are not read yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    weight: String,
    kind: Kind,
    shape: [usize; 2],
    block_size: usize,
    nested: Option<Nested>,
}

#[derive(Clone, Debug, PartialEq)]
struct Nested {
    block_size: usize,
    offset: f32,
}

/// The JSON of `quant_state`, as bitsandbytes writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

impl Stored {
    /// Looks whether the weight named `weight` is stored in 4 bits; checks all its tensors if so.
    ///
    /// # Errors
    /// It is quantized in a way that cannot be read, or its tensors contradict each other or `shape`.
    pub fn find(weights: &WeightFiles, weight: &str, shape: [usize; 2]) -> Result<Option<Self>, Error> {
        let fail = |message: String| Error::FourBit { weight: weight.to_owned(), message };
        let state_of = |kind: Kind| format!("{weight}.quant_state.bitsandbytes__{}", kind.name());
        let present = |kind: Kind| weights.info(&state_of(kind)).is_some();
        let kind = match (present(Kind::Nf4), present(Kind::Fp4)) {
            (true, false) => Kind::Nf4,
            (false, true) => Kind::Fp4,
            (true, true) => return Err(fail("has both an NF4 and an FP4 state".into())),
            (false, false) => {
                let module = weight.strip_suffix(".weight").unwrap_or(weight);
                let eight_bit = weights.info(weight).is_some_and(|info| info.dtype == Dtype::I8);
                if eight_bit || weights.info(&format!("{module}.SCB")).is_some() {
                    return Err(Error::EightBit { weight: weight.to_owned() });
                }
                if weights.info(&format!("{weight}.absmax")).is_some() {
                    return Err(fail(format!("`{}` is missing", state_of(Kind::Nf4))));
                }
                return Ok(None);
            }
        };
        let state = read_state(weights, &state_of(kind)).map_err(|problem| match problem {
            Problem::Assets(error) => Error::Assets(error),
            Problem::Content(message) => fail(message),
        })?;
        let stored = Self::from_state(weight, kind, shape, &state).map_err(fail)?;
        stored.check_tensors(weights).map_err(fail)?;
        Ok(Some(stored))
    }

    fn from_state(weight: &str, kind: Kind, shape: [usize; 2], state: &State) -> Result<Self, String> {
        if state.quant_type != kind.name() {
            return Err(format!("its state says {:?} but is named {}", state.quant_type, kind.name()));
        }
        if state.shape != shape {
            return Err(format!("its state says shape {:?}, config.json makes it {shape:?}", state.shape));
        }
        let plausible = |size: usize| size.is_power_of_two() && (2..=1 << 16).contains(&size);
        if !plausible(state.blocksize) {
            return Err(format!("its block size {} is not a power of two from 2 to 65536", state.blocksize));
        }
        if !["float32", "bfloat16", "float16"].contains(&state.dtype.as_str()) {
            return Err(format!("its dtype {:?} is not float32, bfloat16 or float16", state.dtype));
        }
        let nested = match (state.nested_blocksize, state.nested_offset) {
            (None, None) => None,
            (Some(block_size), Some(offset)) => {
                if !plausible(block_size) {
                    return Err(format!(
                        "its nested block size {block_size} is not a power of two from 2 to 65536"
                    ));
                }
                let offset = offset as f32;
                if !offset.is_finite() {
                    return Err("its nested offset is not finite".into());
                }
                if state.nested_dtype.as_deref().is_some_and(|dtype| dtype != "float32") {
                    return Err(format!("its nested dtype {:?} is not float32", state.nested_dtype));
                }
                Some(Nested { block_size, offset })
            }
            _ => return Err("its state has only one of `nested_blocksize` and `nested_offset`".into()),
        };
        Ok(Self { weight: weight.to_owned(), kind, shape, block_size: state.blocksize, nested })
    }

    fn check_tensors(&self, weights: &WeightFiles) -> Result<(), String> {
        let packed = self.elements().div_ceil(2) as u64;
        let info = require(weights, &self.weight)?;
        // The bytes may be stored as wider numbers; then up to one of those is padding.
        let width = (info.dtype.bitsize() / 8) as u64;
        if info.bytes() < packed || info.bytes() >= packed + width.max(1) {
            return Err(format!("holds {} bytes; shape {:?} takes {packed}", info.bytes(), self.shape));
        }
        let expect = |name: &str, dtype: Dtype, elements: usize| -> Result<(), String> {
            let tensor = self.part(name);
            let info = require(weights, &tensor)?;
            match info.dtype == dtype && info.elements() == elements {
                true => Ok(()),
                false => Err(format!(
                    "`{tensor}` is {:?} {:?}; expected {elements} numbers of {dtype:?}",
                    info.dtype, info.shape
                )),
            }
        };
        expect("quant_map", Dtype::F32, 16)?;
        let absmax_dtype = if self.nested.is_some() { Dtype::U8 } else { Dtype::F32 };
        expect("absmax", absmax_dtype, self.blocks())?;
        if let Some(nested) = &self.nested {
            expect("nested_absmax", Dtype::F32, self.blocks().div_ceil(nested.block_size))?;
            expect("nested_quant_map", Dtype::F32, 256)?;
        }
        Ok(())
    }

    /// Names of the tensors that belong to the weight, itself included.
    pub fn tensors(&self) -> Vec<String> {
        let state = format!("quant_state.bitsandbytes__{}", self.kind.name());
        let mut names =
            vec![self.weight.clone(), self.part("absmax"), self.part("quant_map"), self.part(&state)];
        if self.nested.is_some() {
            names.extend([self.part("nested_absmax"), self.part("nested_quant_map")]);
        }
        names
    }

    /// The 4-bit data type.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its blocks, whatever its levels: what its size follows from.
    pub fn blocks_of(&self) -> Spec {
        Spec::Nf4 { block_size: self.block_size, double_quant: self.nested.is_some() }
    }

    /// Bytes it takes once loaded.
    pub fn bytes(&self) -> u64 {
        let absmax = match &self.nested {
            None => 4 * self.blocks(),
            Some(nested) => self.blocks() + 4 * self.blocks().div_ceil(nested.block_size) + 4 * 256,
        };
        (self.elements().div_ceil(2) + absmax) as u64
    }

    /// Whether this is what a recipe asks for.
    ///
    /// # Errors
    /// It is not; the message says how to write the recipe.
    pub fn agrees(&self, spec: Spec) -> Result<(), Error> {
        let Spec::Nf4 { block_size, double_quant } = spec;
        if self.kind == Kind::Nf4 && self.block_size == block_size && self.nested.is_some() == double_quant {
            return Ok(());
        }
        let double = self.nested.is_some();
        Err(Error::Disagrees {
            weight: self.weight.clone(),
            asked_block_size: block_size,
            asked_double_quant: double_quant,
            found: format!(
                "{} with block_size = {} and double_quant = {double}",
                self.kind.name().to_uppercase(),
                self.block_size
            ),
            way_out: match self.kind {
                Kind::Nf4 => format!(
                    "write `[quantization.nf4]` with `block_size = {}` and `double_quant = {double}`, or leave the \
                     table out to take the checkpoint as it is",
                    self.block_size
                ),
                Kind::Fp4 => "leave `[quantization.nf4]` out to take the checkpoint as it is".into(),
            },
        })
    }

    /// Reads the weight: its packed codes and scales, never a dense copy.
    ///
    /// # Errors
    /// A file that can no longer be read, or a scale or level that is not finite.
    pub fn read(&self, weights: &WeightFiles) -> Result<Quantized, Error> {
        let mut codes = weights.read(&self.weight)?;
        codes.truncate(self.elements().div_ceil(2));
        let absmax = match &self.nested {
            None => Absmax::F32(weights.read_floats(&self.part("absmax"))?),
            Some(nested) => Absmax::Double {
                codes: weights.read(&self.part("absmax"))?,
                nested_absmax: weights.read_floats(&self.part("nested_absmax"))?,
                nested_map: Box::new(self.levels(weights, "nested_quant_map")?),
                offset: nested.offset,
                nested_block_size: nested.block_size,
            },
        };
        let codebook = self.levels(weights, "quant_map")?;
        Ok(Quantized { shape: self.shape, block_size: self.block_size, codebook, codes, absmax })
    }

    fn levels<const N: usize>(&self, weights: &WeightFiles, part: &str) -> Result<[f32; N], Error> {
        let levels = weights.read_floats::<f32>(&self.part(part))?;
        levels.try_into().map_err(|levels: Vec<f32>| Error::FourBit {
            weight: self.weight.clone(),
            message: format!("`{}` holds {} levels; expected {N}", self.part(part), levels.len()),
        })
    }

    fn part(&self, name: &str) -> String {
        format!("{}.{name}", self.weight)
    }

    fn elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    fn blocks(&self) -> usize {
        self.elements().div_ceil(self.block_size)
    }
}

enum Problem {
    Assets(crate::assets::Error),
    Content(String),
}

fn require<'a>(weights: &'a WeightFiles, tensor: &str) -> Result<&'a TensorInfo, String> {
    weights.info(tensor).ok_or_else(|| format!("`{tensor}` is missing"))
}

fn read_state(weights: &WeightFiles, tensor: &str) -> Result<State, Problem> {
    let info = require(weights, tensor).map_err(Problem::Content)?;
    if info.dtype != Dtype::U8 || info.bytes() > STATE_LIMIT {
        return Err(Problem::Content(format!(
            "`{tensor}` is {:?} {:?}; expected the bytes of a short JSON text",
            info.dtype, info.shape
        )));
    }
    let bytes = weights.read(tensor).map_err(Problem::Assets)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Problem::Content(format!("`{tensor}` is not a quantization state: {error}")))
}
