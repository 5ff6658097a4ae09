//! Checkpoints that bitsandbytes quantized: taken as they are, tensor by tensor, or refused by name.

#![expect(clippy::unwrap_used, reason = "a helper outside the test functions may fail the test")]

use std::fs;
use std::path::{Path, PathBuf};

use burn_flex::Flex;
use tempfile::TempDir;
use tune::adapter::projection::Role;
use tune::assets::{ModelDir, SafetensorsFile, WeightFiles};
use tune::model::{FloatDtype, family, load};
use tune::quant::bitsandbytes::{Kind, Stored};
use tune::quant::{self, spec::Spec};
use tune_kernels::linear::FrozenWeight;

mod support;
use support::{Tensor, read_tensors, write_safetensors};

const AS_STORED: Spec = Spec::Nf4 { block_size: 64, double_quant: true };

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn load_model(
    folder: &Path,
    quantization: Option<Spec>,
) -> Result<tune::model::Decoder<Flex>, tune::model::Error> {
    let model = ModelDir::open(folder)?;
    let spec = family::decoder_spec(model.config())?;
    load::load(model.weights(), &spec, quantization, FloatDtype::F32, &Default::default(), &mut |_| {})
}

#[test]
fn logits_agree_with_the_dequantized_checkpoint() {
    for name in ["bnb_nf4", "bnb_nf4_stored_bf16", "bnb_fp4"] {
        let folder = golden().join("families").join(name);
        let file = SafetensorsFile::open(&folder.join("golden.safetensors")).unwrap();
        let bytes = file.read("input_ids").unwrap();
        let ids: Vec<u32> = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&id| u32::try_from(i64::from_le_bytes(id)).unwrap())
            .collect();
        let expected: Vec<f32> = file.read_floats("logits").unwrap();
        let decoder = load_model(&folder, None).unwrap();
        // What llm_int8_skip_modules left alone is dense, the rest in 4 bits.
        let (_, layer) = decoder.layers().up().next().unwrap().unwrap();
        let weight = |role: Role| {
            let projection = layer.spec().projections().find(|projection| projection.role == role);
            &layer.projection(projection.unwrap().slot).weight
        };
        assert!(matches!(weight(Role::Down), FrozenWeight::Dense(_)));
        assert!(matches!(weight(Role::Up), FrozenWeight::Nf4(_)));
        let logits: Vec<f32> = decoder.logits(&ids, None).unwrap().into_data().into_vec().unwrap();
        let difference = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(logits.len() == expected.len() && difference <= 1e-4, "{name}: {difference}");
    }
}

#[test]
fn quantizing_while_loading_gives_the_checkpoint_that_the_rule_gives() {
    let trajectory = golden().join("trajectory");
    let folder = TempDir::new().unwrap();
    fs::copy(trajectory.join("base_nf4.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let stored = WeightFiles::open(folder.path()).unwrap();
    let base = ModelDir::open(&trajectory.join("base")).unwrap();
    let spec = family::decoder_spec(base.config()).unwrap();
    for module in spec.modules() {
        let name = format!("{}.weight", module.path);
        let shape = [module.out_features, module.in_features];
        let dense = base.weights().read_floats::<f32>(&name).unwrap();
        let ours = quant::nf4::quantize(&dense, shape, AS_STORED);
        let theirs = Stored::find(&stored, &name, shape).unwrap().expect("quantized");
        theirs.agrees(AS_STORED).unwrap();
        assert_eq!(ours, theirs.read(&stored).unwrap(), "{name}");
    }
}

#[test]
fn a_recipe_has_to_say_what_the_checkpoint_has() {
    let nf4 = golden().join("families/bnb_nf4");
    load_model(&nf4, Some(AS_STORED)).unwrap();
    let refused = |folder: &str, spec: Spec| {
        load_model(&golden().join("families").join(folder), Some(spec)).unwrap_err().to_string()
    };
    let error = refused("bnb_nf4", Spec::Nf4 { block_size: 128, double_quant: true });
    assert!(error.contains("block_size = 128") && error.contains("`block_size = 64`"), "{error}");
    let error = refused("bnb_nf4", Spec::Nf4 { block_size: 64, double_quant: false });
    assert!(error.contains("`double_quant = true`"), "{error}");
    let error = refused("bnb_fp4", Spec::Nf4 { block_size: 64, double_quant: false });
    assert!(error.contains("FP4") && error.contains("leave `[quantization.nf4]` out"), "{error}");
}

const WEIGHT: &str = "model.layers.1.self_attn.q_proj.weight";

/// Loads bnb_nf4 with some of its tensors changed.
fn load_changed(change: impl FnOnce(&mut Vec<Tensor>)) -> String {
    let source = golden().join("families/bnb_nf4");
    let folder = TempDir::new().unwrap();
    fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut tensors = read_tensors(&source.join("model.safetensors"));
    change(&mut tensors);
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    load_model(folder.path(), None).map(|_| ()).unwrap_err().to_string()
}

fn tensor<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

#[track_caller]
fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn missing_parts_are_named() {
    for part in ["absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4"]
    {
        let name = format!("{WEIGHT}.{part}");
        let error = load_changed(|tensors| tensors.retain(|tensor| tensor.name != name));
        says(&error, &[WEIGHT, &name, "missing"]);
    }
    says(&load_changed(|tensors| tensors.retain(|tensor| tensor.name != WEIGHT)), &[WEIGHT, "missing"]);
}

#[test]
fn parts_of_another_size_are_named() {
    for part in ["absmax", "quant_map", "nested_absmax", "nested_quant_map"] {
        let name = format!("{WEIGHT}.{part}");
        let error = load_changed(|tensors| {
            let tensor = tensor(tensors, &name);
            let element = tensor.data.len() / tensor.shape[0];
            tensor.data.extend(vec![0; element]);
            tensor.shape[0] += 1;
        });
        says(&error, &[WEIGHT, &name]);
    }
    let error = load_changed(|tensors| {
        let tensor = tensor(tensors, WEIGHT);
        tensor.data.truncate(100);
        tensor.shape = vec![100, 1];
    });
    says(&error, &[WEIGHT, "holds 100 bytes"]);
}

#[test]
fn hostile_states_are_refused() {
    let state = format!("{WEIGHT}.quant_state.bitsandbytes__nf4");
    let with_state = |text: &str| {
        load_changed(|tensors| {
            let tensor = tensor(tensors, &state);
            tensor.data = text.as_bytes().to_vec();
            tensor.shape = vec![text.len()];
        })
    };
    let whole = |changes: &str| {
        format!(
            "{{\"quant_type\":\"nf4\",\"dtype\":\"bfloat16\",\"nested_blocksize\":256,\"nested_dtype\":\"float32\"{changes}}}"
        )
    };
    says(&with_state("{"), &[WEIGHT, "not a quantization state"]);
    says(&with_state(&"[".repeat(60_000)), &[WEIGHT]);
    let shaped = ",\"shape\":[32,32],\"nested_offset\":0.1";
    for block_size in ["0", "3", "1099511627776", "-64", "64.5"] {
        says(&with_state(&whole(&format!(",\"blocksize\":{block_size}{shaped}"))), &[WEIGHT]);
    }
    let rest = ",\"blocksize\":64,\"nested_offset\":0.1";
    for shape in ["[32]", "[32,31]", "[18446744073709551615,2]", "[]"] {
        says(&with_state(&whole(&format!(",\"shape\":{shape}{rest}"))), &[WEIGHT]);
    }
    says(
        &with_state(&whole(",\"blocksize\":64,\"shape\":[32,32],\"nested_offset\":1e300")),
        &[WEIGHT, "finite"],
    );
    says(&with_state(&whole(",\"blocksize\":64,\"shape\":[32,32]")), &[WEIGHT, "only one of"]);
    says(&with_state(&whole(&format!(",\"blocksize\":64{shaped},\"twist\":1"))), &[WEIGHT, "twist"]);
}

#[test]
fn damaged_scales_are_refused() {
    let name = format!("{WEIGHT}.nested_absmax");
    let error = load_changed(|tensors| {
        tensor(tensors, &name).data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    says(&error, &[&name, "NaN"]);
}

#[test]
fn eight_bit_weights_are_refused_by_name() {
    let error = load_changed(|tensors| {
        tensors.retain(|tensor| !tensor.name.starts_with(WEIGHT));
        tensors.push(Tensor { name: WEIGHT.into(), dtype: "I8", shape: vec![32, 32], data: vec![1; 1024] });
        let scales = WEIGHT.replace(".weight", ".SCB");
        tensors.push(Tensor { name: scales, dtype: "F32", shape: vec![32], data: vec![0; 128] });
    });
    says(&error, &[WEIGHT, "8 bits"]);
}

#[test]
fn kinds_are_told_apart() {
    for (name, kind) in [("bnb_nf4", Kind::Nf4), ("bnb_fp4", Kind::Fp4)] {
        let weights = WeightFiles::open(&golden().join("families").join(name)).unwrap();
        let stored = Stored::find(&weights, WEIGHT, [32, 32]).unwrap().expect("quantized");
        assert_eq!(stored.kind(), kind);
    }
}
