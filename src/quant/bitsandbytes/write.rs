//! The same layout the other way: the tensors of a quantized weight, as bitsandbytes and transformers save them.
//!
//! Names, shapes, dtypes and the text of the state are theirs to the byte, so that two files of the same codes are
//! one. Codes are stored as bytes (`bnb_4bit_quant_storage` uint8).

use std::borrow::Cow;

use tune_kernels::nf4::{Absmax, NESTED_BLOCK_SIZE, Quantized};

use super::super::spec::Spec;
use super::Kind;
use crate::assets::Dtype;
use crate::files::safetensors::TensorHeader;

const ABSMAX: &str = "absmax";
const CODEBOOK: &str = "quant_map";
const NESTED_ABSMAX: &str = "nested_absmax";
const NESTED_MAP: &str = "nested_quant_map";

/// A weight that is to be stored in 4 bits: all that its tensors' names and shapes follow from.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Name of the weight, `….weight`.
    pub weight: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Blocks and double quantization.
    pub spec: Spec,
    /// The dtype that it has now, as torch names it: what readers dequantize to.
    pub dtype: &'static str,
    /// Mean of the block scales, which the state tells; under double quantization alone.
    pub offset: Option<f32>,
}

impl Plan {
    /// The tensors that are written for the weight.
    pub fn tensors(&self) -> Vec<TensorHeader> {
        let Spec::Nf4 { block_size, double_quant } = self.spec;
        let elements = self.shape[0] * self.shape[1];
        let blocks = elements.div_ceil(block_size);
        let tensor = |name: String, dtype: Dtype, shape: Vec<usize>| TensorHeader { name, dtype, shape };
        let scales = if double_quant { Dtype::U8 } else { Dtype::F32 };
        let mut tensors = vec![
            tensor(self.weight.clone(), Dtype::U8, vec![elements.div_ceil(2), 1]),
            tensor(self.part(ABSMAX), scales, vec![blocks]),
            tensor(self.part(CODEBOOK), Dtype::F32, vec![16]),
            tensor(self.part(&state_part()), Dtype::U8, vec![self.state().len()]),
        ];
        if double_quant {
            let nested = blocks.div_ceil(NESTED_BLOCK_SIZE);
            tensors.push(tensor(self.part(NESTED_ABSMAX), Dtype::F32, vec![nested]));
            tensors.push(tensor(self.part(NESTED_MAP), Dtype::F32, vec![256]));
        }
        tensors
    }

    /// The little-endian bytes of one of these tensors; `None` for another name.
    pub fn bytes<'a>(&self, tensor: &str, quantized: &'a Quantized) -> Option<Cow<'a, [u8]>> {
        if tensor == self.weight {
            return Some(Cow::Borrowed(&quantized.codes));
        }
        let part = tensor.strip_prefix(&self.weight)?.strip_prefix('.')?;
        match (part, &quantized.absmax) {
            (ABSMAX, Absmax::F32(values)) => Some(floats(values)),
            (ABSMAX, Absmax::Double { codes, .. }) => Some(Cow::Borrowed(codes)),
            (CODEBOOK, _) => Some(floats(&quantized.codebook)),
            (NESTED_ABSMAX, Absmax::Double { nested_absmax, .. }) => Some(floats(nested_absmax)),
            (NESTED_MAP, Absmax::Double { nested_map, .. }) => Some(floats(nested_map.as_slice())),
            (part, _) if part == state_part() => Some(Cow::Owned(self.state().into_bytes())),
            _ => None,
        }
    }

    /// The quantization state: JSON as Python's `json.dumps` writes it.
    fn state(&self) -> String {
        let Spec::Nf4 { block_size, double_quant } = self.spec;
        let [out, input] = self.shape;
        let nested = match self.offset.filter(|_| double_quant) {
            Some(offset) => format!(
                ", \"nested_blocksize\": {NESTED_BLOCK_SIZE}, \"nested_dtype\": \"float32\", \"nested_offset\": {}",
                python_float(f64::from(offset))
            ),
            None => String::new(),
        };
        format!(
            "{{\"quant_type\": \"{}\", \"blocksize\": {block_size}, \"dtype\": \"{}\", \"shape\": [{out}, {input}]{nested}}}",
            Kind::Nf4.name(),
            self.dtype
        )
    }

    fn part(&self, name: &str) -> String {
        format!("{}.{name}", self.weight)
    }
}

/// The mean of the block scales, where they are quantized too.
pub fn offset(quantized: &Quantized) -> Option<f32> {
    match &quantized.absmax {
        Absmax::F32(_) => None,
        Absmax::Double { offset, .. } => Some(*offset),
    }
}

fn state_part() -> String {
    format!("quant_state.bitsandbytes__{}", Kind::Nf4.name())
}

fn floats(values: &[f32]) -> Cow<'static, [u8]> {
    Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// A finite number as Python prints it: shortest, an exponent with its sign and two digits.
fn python_float(value: f64) -> String {
    let shortest = format!("{value:?}");
    match shortest.split_once('e') {
        None => shortest,
        Some((mantissa, exponent)) => match exponent.strip_prefix('-') {
            Some(digits) => format!("{mantissa}e-{digits:0>2}"),
            None => format!("{mantissa}e+{exponent:0>2}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_printed_as_python_prints_them() {
        let printed = [0.366_739_9_f32, 5e-5, 1e-30, 0.0, 2.0].map(|value| python_float(f64::from(value)));
        let python = ["0.3667398989200592", "4.999999873689376e-05", "1.0000000031710769e-30", "0.0", "2.0"];
        assert_eq!(printed, python);
    }
}
