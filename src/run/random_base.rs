//! A base with random weights on disk, in 4 bits, for benches that fetch layers from there.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use tune_kernels::nf4::Quantized;

use super::Error;
use crate::assets::Dtype;
use crate::export;
use crate::export::shards::{Entry, SHARD_BYTES, Shards};
use crate::files::safetensors::TensorHeader;
use crate::files::{self, Existing};
use crate::model::random::Values;
use crate::model::{DecoderSpec, FloatDtype, tensors};
use crate::quant::bitsandbytes::write::{self, Plan};
use crate::quant::spec::Spec;

/// Writes the weights of a decoder of `spec` to a folder, which is complete or absent.
///
/// # Errors
/// The folder exists and is not empty, or cannot be written; or `stop` returned true.
pub(super) fn write(
    spec: &DecoderSpec,
    quantization: Option<Spec>,
    dtype: FloatDtype,
    folder: &Path,
    stop: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let (name, torch_name) = match dtype {
        FloatDtype::F32 => (Dtype::F32, "float32"),
        FloatDtype::Bf16 => (Dtype::BF16, "bfloat16"),
        FloatDtype::F16 => (Dtype::F16, "float16"),
    };
    let (mut entries, mut plans) = (Vec::new(), BTreeMap::new());
    for tensor in tensors::expected(spec) {
        let parameters = tensor.shape.iter().product::<usize>() as u64;
        let tensors = match quantization.filter(|_| tensor.projection && !tensor.dense) {
            None => vec![TensorHeader { name: tensor.name, dtype: name, shape: tensor.shape }],
            Some(spec) => {
                let shape = [tensor.shape[0], tensor.shape[1]];
                // Its offset depends on the shape alone.
                let offset = write::offset(&Values::new().quantized([1, shape[1]], spec));
                let plan = Plan { weight: tensor.name, shape, spec, dtype: torch_name, offset };
                let tensors = plan.tensors();
                plans.extend(tensors.iter().map(|part| (part.name.clone(), plan.clone())));
                tensors
            }
        };
        entries.push(Entry { tensors, parameters });
    }
    let mut values = Values::new();
    // The tensors of one weight are adjacent among the scales, and again among the codes.
    let mut last: Option<(String, Quantized)> = None;
    let mut bytes = |header: &TensorHeader| -> Result<Vec<u8>, export::Error> {
        if let Some(plan) = plans.get(&header.name) {
            let quantized = match last.take() {
                Some((known, quantized)) if known == plan.weight => quantized,
                _ => values.quantized(plan.shape, plan.spec),
            };
            let bytes = plan.bytes(&header.name, &quantized).map(|bytes| bytes.into_owned());
            last = Some((plan.weight.clone(), quantized));
            return Ok(bytes.unwrap_or_default());
        }
        let count: usize = header.shape.iter().product();
        let (center, size) = match header.shape.as_slice() {
            [_, width] => (0.0, 1.0 / (*width as f32).sqrt()),
            _ if header.name.ends_with(".bias") => (0.0, 0.1),
            _ => (1.0, 0.1),
        };
        let floats = (0..count).map(|_| values.float(center, size));
        Ok(match dtype {
            FloatDtype::F32 => floats.flat_map(f32::to_le_bytes).collect(),
            FloatDtype::Bf16 => floats.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
            FloatDtype::F16 => floats.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
        })
    };
    let metadata = BTreeMap::new();
    let shards = Shards { entries, limit: SHARD_BYTES, metadata: &metadata };
    files::write_folder_atomically(folder, Existing::Refuse, |folder| -> Result<(), export::Error> {
        shards.write(folder, &mut bytes, &mut |_| {}, stop)
    })?;
    Ok(())
}
