//! Keys, tensors and bytes.

use std::fs;

use serde_json::{Value, json};
use tune::export::gguf::FileType;
use tune::export::gguf::vocabulary;
use tune_kernels::ggml::BlockType;

use super::reader::{File, hash, read, summary};
use super::support::{
    ADAPTERS, export, export_adapter, export_merged, golden, golden_json, source, staged, staged_with,
};

/// Keys of ours that may differ from the converter's: the folder's name as a title, and where llama.cpp, which has no
/// sliding window for these families, would begin to compute something else. For Phi-2 and Falcon the converter writes what
/// released models have, whatever the file says; for Qwen2-MoE and Qwen3-MoE the width of dense layers, of which there are none.
fn may_differ(key: &str, name: &str) -> bool {
    let windowed =
        matches!(name, "mistral" | "qwen2_sliding" | "dense/starcoder2" | "dense/falcon" | "dense/phi3");
    key == "general.name"
        || (key.ends_with(".context_length") && windowed)
        || (key.ends_with(".feed_forward_length")
            && matches!(name, "dense/phi" | "mixtures/qwen2_moe" | "mixtures/qwen3_moe_stacked"))
}

/// Keys of the converter's alone: guesses from the folder's name, one that llama.cpp no longer reads, and some of single
/// families that say what their absence means, as `gguf_dense.py` has it.
fn theirs_alone(key: &str, name: &str) -> bool {
    let of_family = match name {
        "dense/cohere2" => ".rope.scaling.type",
        "dense/olmo3" => ".rope.freq_base_swa",
        "dense/phi3" => ".rope.scaling.original_context_length",
        "dense/starcoder2" => ".attention.sliding_window",
        _ => ".rope.scaling.yarn_attn_factor",
    };
    matches!(key, "general.basename" | "general.finetune" | "general.version")
        || key.ends_with(".rope.scaling.yarn_attn_factor")
        || key.ends_with(of_family)
}

fn assert_tensors(name: &str, file: &File, expected: &Value) {
    let expected = expected["tensors"].as_object().unwrap();
    let names = |of: Vec<&String>| of.into_iter().cloned().collect::<Vec<_>>();
    let mut wanted = names(expected.keys().collect());
    wanted.sort();
    assert_eq!(names(file.tensors.keys().collect()), wanted, "{name}");
    for (tensor, found) in &file.tensors {
        let [kind, shape, content] = [0, 1, 2].map(|at| &expected[tensor][at]);
        assert_eq!(json!(found.kind.name().to_lowercase()), *kind, "{name} {tensor}");
        assert_eq!(json!(found.shape), *shape, "{name} {tensor}");
        match content.as_array() {
            None => assert_eq!(json!(hash(&found.bytes)), *content, "{name} {tensor}"),
            // Computed, not copied: to the last bits.
            Some(numbers) => {
                for (found, expected) in found.values().iter().zip(numbers) {
                    let expected = expected.as_f64().unwrap();
                    assert!((f64::from(*found) - expected).abs() <= 1e-6 * expected, "{name} {tensor}");
                }
            }
        }
    }
}

/// Exports every model of a golden file as the converter did; how many there are.
fn assert_files(golden_file: &str) -> usize {
    let out = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for (name, expected) in golden_json(golden_file) {
        if name.contains(' ') {
            continue;
        }
        let into = out.path().join(name.replace('/', "-"));
        fs::create_dir(&into).unwrap();
        let folder = staged_with(&source(&name), &expected["config"], &into);
        let outcome = export(&folder, FileType::F16, &into.join("gguf"))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let file = read(&into.join("gguf").join(&outcome.file));
        assert_tensors(&name, &file, &expected);
        for (key, expected) in expected["keys"].as_object().unwrap() {
            if theirs_alone(key, &name) || may_differ(key, &name) {
                continue;
            }
            let found = summary(file.keys.get(key).unwrap_or_else(|| panic!("{name}: {key} is missing")));
            let close = match (found.as_f64(), expected.as_f64()) {
                (Some(found), Some(expected)) => (found - expected).abs() <= 1e-6 * expected.abs(),
                _ => found == *expected,
            };
            assert!(close, "{name}: {key} is {found}, the converter's {expected}");
        }
        compared += 1;
    }
    compared
}

#[test]
fn models_of_every_family_are_what_the_converter_writes() {
    assert_eq!(assert_files("files.json"), 18);
    assert_eq!(assert_files("dense_files.json"), 32);
}

#[test]
fn adapters_alone_and_folded_in_are_the_files_that_llama_cpp_was_run_on() {
    let out = tempfile::tempdir().unwrap();
    let base = staged(&golden("peft/base"), out.path());
    let expected = golden_json("files.json");
    for name in ADAPTERS {
        let adapter = golden("peft").join(name);
        let alone = out.path().join(format!("{name}-lora"));
        let outcome = export_adapter(&adapter, &base, &alone).unwrap();
        let file = read(&alone.join(&outcome.file));
        let wanted = &expected[&format!("peft/{name} lora")];
        assert_tensors(name, &file, wanted);
        assert_eq!(json!(file.keys), wanted["keys"], "{name}");
        assert!(fs::read_to_string(alone.join("Modelfile")).unwrap().contains("ADAPTER ./adapter-f32.gguf"));

        let merged = out.path().join(format!("{name}-merged"));
        let outcome = export_merged(&adapter, &base, FileType::F32, &merged).unwrap();
        let file = read(&merged.join(&outcome.file));
        let wanted = &expected[&format!("peft/{name} merged")];
        // Sums of products, not copies: compared by what they are in llama.cpp, in `computed`.
        assert_eq!(file.tensors.len(), wanted["tensors"].as_object().unwrap().len());
        assert_eq!(file.keys["tune.adapter_sha256"], wanted["keys"]["tune.adapter_sha256"]);
        assert_eq!(file.keys["general.base_model.count"], json!(1));
    }
}

#[test]
fn a_quantized_model_is_the_mixture_and_close_to_the_original() {
    let out = tempfile::tempdir().unwrap();
    let base = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/base");
    let exact = export(&base, FileType::F32, &out.path().join("f32")).unwrap();
    assert_eq!(exact.error, 0.0);
    let exact = read(&out.path().join("f32").join(exact.file));
    for (file, bound) in [
        (FileType::F16, 1e-8),
        (FileType::Bf16, 0.0),
        (FileType::Q8_0, 6e-3),
        (FileType::Q6K, 0.02),
        (FileType::Q5KM, 0.04),
        (FileType::Q4KM, 0.08),
        (FileType::Q4_0, 0.1),
    ] {
        let folder = out.path().join(file.name());
        let outcome = export(&base, file, &folder).unwrap();
        let path = folder.join(&outcome.file);
        assert_eq!(fs::metadata(&path).unwrap().len(), outcome.bytes);
        let found = read(&path);
        for (name, tensor) in &found.tensors {
            let (values, original) = (tensor.values(), exact.tensors[name].values());
            let square = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            let difference: Vec<f32> = values.iter().zip(&original).map(|(a, b)| a - b).collect();
            let error = (square(&difference) / square(&original)).sqrt();
            assert!(error <= bound, "{} {name}: {error}", file.name());
        }
        assert!(outcome.worst.is_none_or(|(_, worst)| worst <= bound));
        if file == FileType::Q4KM {
            let kind = |name: &str| found.tensors[name].kind;
            // Six layers: 2 and 5 get more bits; rows of 192 are no super-blocks, rows of 512 are.
            let down = |layer: usize| kind(&format!("blk.{layer}.ffn_down.weight"));
            assert_eq!(
                [0, 1, 2, 5].map(down),
                [BlockType::Q4K, BlockType::Q4K, BlockType::Q6K, BlockType::Q6K]
            );
            assert_eq!(kind("blk.2.attn_v.weight"), BlockType::Q8_0);
            assert_eq!(kind("blk.0.attn_v.weight"), BlockType::Q5_0);
            assert_eq!(kind("token_embd.weight"), BlockType::Q8_0);
            assert_eq!(kind("output_norm.weight"), BlockType::F32);
            assert_eq!(outcome.fallbacks.len(), 37);
            assert_eq!(found.keys["general.file_type"], json!(15));
        }
    }
}

#[test]
fn the_same_bytes_each_time_whatever_the_number_of_threads() {
    let out = tempfile::tempdir().unwrap();
    let base = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/base");
    let bytes = |threads: usize| {
        let folder = out.path().join(threads.to_string());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let outcome = pool.install(|| export(&base, FileType::Q4KM, &folder)).unwrap();
        fs::read(folder.join(outcome.file)).unwrap()
    };
    assert!(bytes(1) == bytes(3));
}

#[test]
fn a_sentencepiece_vocabulary_is_what_its_own_file_says() {
    let expected = golden_json("sentencepiece/expected.json");
    let count = expected["tokens"].as_array().unwrap().len();
    let found = vocabulary::read(&golden("gguf/sentencepiece/tokenizer.json"), count + 2, false).unwrap();
    let list = |key: &str| match found.keys.iter().find(|(name, _)| name == &format!("tokenizer.ggml.{key}"))
    {
        Some((_, tune::export::gguf::container::Value::Texts(texts))) => json!(texts),
        Some((_, tune::export::gguf::container::Value::F32s(numbers))) => json!(numbers),
        Some((_, tune::export::gguf::container::Value::I32s(numbers))) => json!(numbers),
        other => panic!("{key}: {other:?}"),
    };
    let (tokens, scores, types) = (list("tokens"), list("scores"), list("token_type"));
    assert_eq!(tokens[count + 1], json!(format!("[PAD{}]", count + 1)));
    assert_eq!((&types[count], &types[count + 1]), (&json!(5), &json!(5)));
    for id in 0..count {
        assert_eq!((&tokens[id], &types[id]), (&expected["tokens"][id], &expected["types"][id]), "{id}");
        // The scores of special tokens are never asked for.
        if types[id] != json!(3) {
            assert_eq!(scores[id].as_f64(), expected["scores"][id].as_f64(), "{id}");
        }
    }
}
