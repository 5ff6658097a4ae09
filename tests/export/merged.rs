//! Merged folders beside what PEFT makes of the same adapters.

use std::fs;

use half::bf16;
use serde_json::Value;
use tune::assets::{Dtype, ModelDir, SafetensorsFile};
use tune::export::merge::{Options, Wanted};
use tune::model::FloatDtype;

use super::support::{
    ADAPTERS, entries, f32_options, golden, largest_difference, logits, merge, reference, write_adapter,
};

#[test]
fn weights_and_logits_are_those_of_peft() {
    let out = tempfile::tempdir().unwrap();
    let base = golden("peft/base");
    for name in ADAPTERS {
        let adapter = golden("peft").join(name);
        let folder = out.path().join(name);
        let outcome = merge(&adapter, &base, f32_options(), &folder).unwrap();
        let expected = SafetensorsFile::open(&adapter.join("merged.safetensors")).unwrap();
        let before = SafetensorsFile::open(&base.join("model.safetensors")).unwrap();
        let merged = ModelDir::open(&folder).unwrap();
        let mut largest = 0.0_f32;
        for tensor in before.names() {
            let found: Vec<f32> = merged.weights().read_floats(tensor).unwrap();
            match expected.info(tensor) {
                Some(_) => {
                    let expected = expected.read_floats::<f32>(tensor).unwrap();
                    largest = largest.max(largest_difference(&found, &expected));
                }
                None => assert_eq!(
                    merged.weights().read(tensor).unwrap(),
                    before.read(tensor).unwrap(),
                    "{tensor}"
                ),
            }
        }
        assert_eq!(merged.weights().names().count(), before.names().count());
        // Sums of at most eight products in f32, in another order.
        assert!(largest <= 1e-6, "{name}: weights differ by {largest}");

        let (ids, expected) = reference(&adapter.join("golden.safetensors"), "input_ids", "logits");
        let difference = largest_difference(&logits(&folder, &ids), &expected);
        assert!(difference <= 1e-4, "{name}: logits differ by {difference}");
        assert!(outcome.comparison.divergence() < 1e-4, "{name}: {:?}", outcome.comparison);
        assert_eq!(outcome.comparison.agreement, 1.0);
        assert!(outcome.report.layers.iter().any(|layer| layer.delta > 0.0));
    }
}

#[test]
fn a_narrow_dtype_is_reached_in_one_rounding() {
    let out = tempfile::tempdir().unwrap();
    let (base, adapter) = (golden("trajectory/base"), golden("trajectory/adapter"));
    let (wide, narrow) = (out.path().join("f32"), out.path().join("bf16"));
    merge(&adapter, &base, f32_options(), &wide).unwrap();
    // The base is bf16, so that is what `auto` writes.
    let outcome = merge(&adapter, &base, Options::default(), &narrow).unwrap();
    let (wide, narrow) = (ModelDir::open(&wide).unwrap(), ModelDir::open(&narrow).unwrap());
    assert_eq!(wide.config()["dtype"], "float32");
    assert_eq!(narrow.config()["dtype"], "bfloat16");
    for tensor in wide.weights().names() {
        let exact: Vec<f32> = wide.weights().read_floats(tensor).unwrap();
        assert_eq!(narrow.weights().info(tensor).unwrap().dtype, Dtype::BF16);
        let found: Vec<f32> = narrow.weights().read_floats(tensor).unwrap();
        let once: Vec<f32> = exact.iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
        assert_eq!(found, once, "{tensor}");
    }
    let layer = &outcome.report.layers[0];
    assert!(layer.rounding > 0.0 && layer.rounding < 0.1 * layer.delta, "{layer:?}");
    assert!(layer.quantization.is_some_and(|error| error > layer.rounding));
}

#[test]
fn onto_the_quantized_base_gives_the_logits_of_training() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("merged");
    let options = Options { onto: Some(Wanted::Nf4), ..f32_options() };
    let (base, adapter) = (golden("trajectory/base"), golden("trajectory/adapter"));
    let outcome = merge(&adapter, &base, options, &folder).unwrap();
    assert!(outcome.onto.contains("NF4"), "{}", outcome.onto);
    for row in 0..2 {
        let file = golden("trajectory/logits.safetensors");
        let (ids, expected) = reference(&file, &format!("input_ids.{row}"), &format!("logits.{row}"));
        let difference = largest_difference(&logits(&folder, &ids), &expected);
        assert!(difference <= 1e-4, "row {row}: logits differ by {difference}");
    }
    // Onto the original weights the model is another one: by how much is told.
    let trained = [("tune.quantization", "nf4 block_size=64 double_quant=true")];
    let told = out.path().join("adapter");
    write_adapter(&told, &base, 0.05, &trained);
    let outcome = merge(&told, &base, f32_options(), &out.path().join("original")).unwrap();
    let distance = outcome.comparison.from_training.unwrap();
    assert!(
        distance > 100.0 * outcome.comparison.residual && distance.is_finite(),
        "{:?}",
        outcome.comparison
    );
}

#[test]
fn shards_hold_the_same_tensors_and_an_index() {
    let out = tempfile::tempdir().unwrap();
    let (base, adapter) = (golden("peft/base"), golden("peft/all_linear"));
    let (whole, parts) = (out.path().join("whole"), out.path().join("parts"));
    merge(&adapter, &base, f32_options(), &whole).unwrap();
    merge(&adapter, &base, Options { shard_bytes: 20_000, ..f32_options() }, &parts).unwrap();
    let shards: Vec<String> =
        entries(&parts).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert!(shards.len() > 3 && shards[0].starts_with("model-00001-of-"), "{shards:?}");
    let index: Value =
        serde_json::from_slice(&fs::read(parts.join("model.safetensors.index.json")).unwrap()).unwrap();
    let (whole, parts) = (ModelDir::open(&whole).unwrap(), ModelDir::open(&parts).unwrap());
    let names: Vec<&str> = whole.weights().names().collect();
    assert_eq!(parts.weights().names().collect::<Vec<_>>(), names);
    assert_eq!(index["weight_map"].as_object().unwrap().len(), names.len());
    let bytes: u64 = names.iter().map(|name| whole.weights().info(name).unwrap().bytes()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
    for name in names {
        assert_eq!(parts.weights().read(name).unwrap(), whole.weights().read(name).unwrap(), "{name}");
    }
}

#[test]
fn a_four_bit_checkpoint_becomes_dense() {
    let out = tempfile::tempdir().unwrap();
    for name in ["bnb_nf4", "bnb_nf4_stored_bf16", "bnb_fp4"] {
        let base = golden("families").join(name);
        let (adapter, folder) = (out.path().join(format!("{name}-a")), out.path().join(name));
        write_adapter(&adapter, &base, 0.05, &[]);
        let outcome = merge(&adapter, &base, Options::default(), &folder).unwrap();
        assert!(outcome.onto.contains("4-bit checkpoint"), "{}", outcome.onto);
        let merged = ModelDir::open(&folder).unwrap();
        assert!(merged.config().get("quantization_config").is_none());
        assert!(ModelDir::open(&base).unwrap().config().get("quantization_config").is_some());
        assert!(merged.weights().names().all(|name| !name.contains("quant") && !name.contains("absmax")));
        assert!(
            merged.weights().names().all(|name| merged.weights().info(name).unwrap().dtype == Dtype::BF16)
        );
    }
}

#[test]
fn tied_embeddings_stay_tied() {
    let out = tempfile::tempdir().unwrap();
    for name in ["smollm2", "qwen2"] {
        let base = golden("families").join(name);
        let (adapter, folder) = (out.path().join(format!("{name}-a")), out.path().join(name));
        write_adapter(&adapter, &base, 0.1, &[]);
        merge(&adapter, &base, Options::default(), &folder).unwrap();
        let merged = ModelDir::open(&folder).unwrap();
        assert_eq!(merged.config()["tie_word_embeddings"], true);
        assert!(merged.weights().info("lm_head.weight").is_none());
    }
}

#[test]
fn every_dtype_that_can_be_asked_for_is_written() {
    let out = tempfile::tempdir().unwrap();
    let (base, adapter) = (golden("peft/base"), golden("peft/plain_qv"));
    for (dtype, stored) in [(FloatDtype::Bf16, Dtype::BF16), (FloatDtype::F16, Dtype::F16)] {
        let folder = out.path().join(dtype.name());
        merge(&adapter, &base, Options { dtype: Some(dtype), ..Options::default() }, &folder).unwrap();
        let merged = ModelDir::open(&folder).unwrap();
        assert!(merged.weights().names().all(|name| merged.weights().info(name).unwrap().dtype == stored));
    }
}
