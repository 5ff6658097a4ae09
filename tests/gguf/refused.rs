//! What cannot be carried is an error that says so, and leaves nothing behind.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tune::export::gguf::FileType;
use tune::export::merge::Options;
use tune::files::Existing;
use tune::run::Environment;
use tune::run::adapters::BaseChoice;
use tune::run::gguf::Source;

use super::support::{choice, environment, export, export_adapter, golden, staged};

/// Changes a JSON file of a folder.
fn change(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(&mut value);
    fs::write(file, value.to_string()).unwrap();
}

/// Exports a model after `prepare` has had its way with it; the error, and that nothing lies there.
fn refusal(model: &str, prepare: impl FnOnce(&Path)) -> String {
    let out = tempfile::tempdir().unwrap();
    let folder = staged(&golden("families").join(model), out.path());
    prepare(&folder);
    let to = out.path().join("gguf");
    let error = export(&folder, FileType::F16, &to).unwrap_err().to_string();
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "something was left beside {to:?}");
    error
}

#[test]
fn models_and_tokenizers_that_llama_cpp_has_no_words_for() {
    let tokenizer = |folder: &Path| folder.join("tokenizer.json");
    type Prepare = Box<dyn FnOnce(&Path)>;
    let cases: Vec<(&str, Prepare, &[&str])> = vec![
        (
            "llama2",
            Box::new(move |folder| fs::remove_file(tokenizer(folder)).unwrap()),
            &["tokenizer.json", "save_pretrained"],
        ),
        (
            "llama2",
            Box::new(move |folder| {
                change(&tokenizer(folder), |value| {
                    value["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated",
                        "invert": false});
                });
            }),
            &["pre_tokenizer", "x+", "llama-bpe", "qwen2"],
        ),
        (
            "llama2",
            Box::new(move |folder| {
                change(&tokenizer(folder), |value| value["normalizer"] = json!({"type": "Lowercase"}));
            }),
            &["normalizer", "Lowercase"],
        ),
        (
            "llama2",
            Box::new(move |folder| {
                change(&tokenizer(folder), |value| value["model"]["vocab"]["zz"] = json!(64));
            }),
            &["\"zz\"", "64", "rows"],
        ),
        (
            "llama2",
            Box::new(move |folder| {
                change(&tokenizer(folder), |value| value["model"]["byte_fallback"] = json!(true));
            }),
            &["SentencePiece"],
        ),
    ];
    for (model, prepare, says) in cases {
        let error = refusal(model, prepare);
        for part in says {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
}

#[test]
fn merges_that_no_score_can_say() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("tokenizer.json");
    fs::copy(golden("gguf/sentencepiece/tokenizer.json"), &path).unwrap();
    let read = || tune::export::gguf::vocabulary::read(&path, 800, false);
    read().unwrap();
    change(&path, |value| _ = value["model"]["merges"].as_array_mut().unwrap().remove(40));
    let error = read().unwrap_err().to_string();
    assert!(error.contains("SentencePiece") && error.contains("tokenizer.json"), "{error}");
}

#[test]
fn a_number_too_large_for_its_type() {
    let out = tempfile::tempdir().unwrap();
    let folder = staged(&golden("families/llama2"), out.path());
    let file = folder.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header_json: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let start = header_json[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[header + start + 4..][..4].copy_from_slice(&1e6_f32.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let error = export(&folder, FileType::F16, &out.path().join("f16")).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("1000000") && error.contains("f16"), "{error}");
    assert!(!out.path().join("f16").exists());
    export(&folder, FileType::Bf16, &out.path().join("bf16")).unwrap();
}

#[test]
fn a_stop_and_a_taken_folder_change_nothing() {
    let out = tempfile::tempdir().unwrap();
    let folder = staged(&golden("families/llama2"), out.path());
    let source = Source::open(&folder, BaseChoice::default(), Options::default(), &environment()).unwrap();
    let stopped = Environment { hub_cache: Path::new("no-cache"), stop: &|| true, save: &|| false };
    let to = out.path().join("gguf");
    let error = source.export(FileType::F16, &to, Existing::Refuse, &mut |_| {}, &stopped).unwrap_err();
    assert!(error.to_string().contains("stopped"), "{error}");
    assert!(!to.exists());
    fs::create_dir(&to).unwrap();
    fs::write(to.join("mine"), "x").unwrap();
    let error = export(&folder, FileType::F16, &to).unwrap_err().to_string();
    assert!(error.contains("gguf"), "{error}");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    let replaced =
        |to: &Path| source.export(FileType::F16, to, Existing::Replace, &mut |_| {}, &environment());
    let error = replaced(&folder).unwrap_err().to_string();
    assert!(error.contains("would remove"), "{error}");
    replaced(&to).unwrap();
    assert!(!to.join("mine").exists());
}

#[test]
fn what_belongs_to_adapters_alone_is_refused_for_models() {
    let out = tempfile::tempdir().unwrap();
    let folder = staged(&golden("families/llama2"), out.path());
    let open = |base, options| Source::open(&folder, base, options, &environment()).map(|_| ());
    let error = open(choice(&folder), Options::default()).unwrap_err().to_string();
    assert!(error.contains("--base") && error.contains("adapter_config.json"), "{error}");
    let onto = Options { onto: Some(tune::export::merge::Wanted::Nf4), ..Options::default() };
    let error = open(BaseChoice::default(), onto).unwrap_err().to_string();
    assert!(error.contains("--onto"), "{error}");
    let error = export_adapter(&folder, &folder, &out.path().join("lora")).unwrap_err().to_string();
    assert!(error.contains("adapter"), "{error}");
}
