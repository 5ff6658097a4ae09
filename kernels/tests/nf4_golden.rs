//! NF4 against files that bitsandbytes wrote: codes, scales and weights, bit for bit.
//!
//! The nested codes of double quantization are compared with its CUDA rule, which the fixtures hold beside those
//! of its CPU build; the latter rounds near-ties otherwise.
#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests stop where they fail")]

use std::path::{Path, PathBuf};

use burn_flex::Flex;
use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;
use tune_kernels::nf4::{self, Absmax, CODEBOOK, FP4_CODEBOOK, Nf4Weight, Quantized, dynamic_map};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/nf4")
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(folder().join(name)).expect(name);
    serde_json::from_str(&text).expect(name)
}

/// One fixture, opened.
struct Fixture<'a> {
    name: String,
    tensors: SafeTensors<'a>,
    state: Value,
}

impl Fixture<'_> {
    fn bytes(&self, key: &str) -> Vec<u8> {
        self.tensors
            .tensor(key)
            .unwrap_or_else(|error| panic!("{}: {key}: {error}", self.name))
            .data()
            .to_vec()
    }

    /// A float tensor of any width, in f32.
    fn floats(&self, key: &str) -> Vec<f32> {
        let tensor = self.tensors.tensor(key).unwrap_or_else(|error| panic!("{}: {key}: {error}", self.name));
        let halves = || tensor.data().chunks_exact(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
        match tensor.dtype() {
            Dtype::F32 => {
                tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::BF16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
            Dtype::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
            other => panic!("{}: {key} is {other:?}", self.name),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.tensors.tensor(key).is_ok()
    }

    fn shape(&self) -> [usize; 2] {
        [0, 1].map(|i| self.state["shape"][i].as_u64().expect("a shape") as usize)
    }

    fn block_size(&self) -> usize {
        self.state["blocksize"].as_u64().expect("a block size") as usize
    }

    /// The weight as stored, read the way a checkpoint is read.
    fn stored(&self) -> Quantized {
        let absmax = if self.has("weight.nested_absmax") {
            let map: [f32; 256] = self.floats("weight.nested_quant_map").try_into().expect("256 levels");
            Absmax::Double {
                codes: self.bytes("weight.absmax"),
                nested_absmax: self.floats("weight.nested_absmax"),
                nested_map: Box::new(map),
                offset: self.state["nested_offset"].as_f64().expect("an offset") as f32,
                nested_block_size: self.state["nested_blocksize"].as_u64().expect("a size") as usize,
            }
        } else {
            Absmax::F32(self.floats("weight.absmax"))
        };
        let (shape, block_size) = (self.shape(), self.block_size());
        let codebook = self.floats("weight.quant_map").try_into().expect("16 levels");
        Quantized { shape, block_size, codebook, codes: self.bytes("weight"), absmax }
    }
}

/// Runs `check` on every fixture; returns how many.
fn each_fixture(check: impl Fn(&Fixture<'_>)) -> usize {
    let index = json("index.json");
    let entries = index.as_array().expect("a list of fixtures");
    for entry in entries {
        let name = entry["file"].as_str().expect("a file name").to_owned();
        let bytes = std::fs::read(folder().join(&name)).expect(&name);
        let tensors = SafeTensors::deserialize(&bytes).expect(&name);
        let key = tensors.names().into_iter().find(|key| key.contains("quant_state")).expect("a state");
        let state = serde_json::from_slice(tensors.tensor(key).expect(&name).data()).expect(&name);
        check(&Fixture { name, tensors, state });
    }
    entries.len()
}

#[track_caller]
fn assert_same_bits(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.to_bits(), expected.to_bits(), "{what}[{index}]: {found} instead of {expected}");
    }
}

#[test]
fn tables_are_those_of_bitsandbytes() {
    let map: Vec<f32> = json("dynamic_map.json")
        .as_array()
        .expect("a list")
        .iter()
        .map(|x| x.as_f64().expect("a number") as f32)
        .collect();
    assert_same_bits("dynamic map", &dynamic_map(), &map);
    let checked = each_fixture(|fixture| {
        let fp4 = fixture.state["quant_type"] == "fp4";
        let expected = if fp4 { FP4_CODEBOOK } else { CODEBOOK };
        assert_same_bits(&fixture.name, &fixture.floats("weight.quant_map"), &expected);
    });
    assert!(checked >= 20, "{checked} fixtures");
}

#[test]
fn quantizing_gives_the_stored_codes_and_scales() {
    each_fixture(|fixture| {
        if fixture.state["quant_type"] != "nf4" {
            return;
        }
        let name = &fixture.name;
        let double_quant = fixture.has("weight.nested_absmax");
        let weights = fixture.floats("orig");
        let found = nf4::quantize(&weights, fixture.shape(), fixture.block_size(), double_quant);
        assert!(found.codes == fixture.bytes("weight"), "{name}: codes differ");
        match &found.absmax {
            Absmax::F32(absmax) => assert_same_bits(name, absmax, &fixture.floats("weight.absmax")),
            Absmax::Double { codes, nested_absmax, offset, .. } => {
                assert!(*codes == fixture.bytes("cuda_rule.absmax"), "{name}: nested codes differ");
                assert_same_bits(name, nested_absmax, &fixture.floats("cuda_rule.nested_absmax"));
                assert_same_bits(name, &[*offset], &fixture.floats("cuda_rule.nested_offset"));
            }
        }
        if fixture.has("cuda_rule.dequantized") {
            assert_same_bits(name, &found.dequantize(), &fixture.floats("cuda_rule.dequantized"));
        }
    });
}

#[test]
fn stored_weights_dequantize_to_the_bit_on_host_and_device() {
    each_fixture(|fixture| {
        let stored = fixture.stored();
        stored.validate().expect(&fixture.name);
        let host = stored.dequantize();
        if fixture.has("dequantized") {
            assert_same_bits(&fixture.name, &host, &fixture.floats("dequantized"));
        }
        let device = Nf4Weight::<Flex>::new(stored, &Default::default()).dequantize();
        let device: Vec<f32> = device.into_data().iter::<f32>().collect();
        assert_same_bits(&fixture.name, &device, &host);
    });
}
