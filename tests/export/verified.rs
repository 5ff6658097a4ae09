//! `tune verify`: good adapters pass, and each fault is named.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tune::adapter::peft::{CONFIG_FILE, TENSORS_FILE};
use tune::export::verify::verify;

use super::support::{ADAPTERS, golden, write_adapter};
use crate::tensors::{Tensor, read_tensors, write_safetensors};

/// A golden adapter with its tensors changed.
fn changed(change: impl FnOnce(&mut Vec<Tensor>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let golden = golden("peft/all_linear");
    fs::copy(golden.join(CONFIG_FILE), folder.path().join(CONFIG_FILE)).unwrap();
    let mut tensors = read_tensors(&golden.join(TENSORS_FILE));
    change(&mut tensors);
    write_safetensors(&folder.path().join(TENSORS_FILE), &tensors);
    folder
}

fn problems(folder: &Path) -> String {
    verify(folder, None).problems.join("\n")
}

#[test]
fn good_adapters_pass_and_are_measured() {
    for name in ADAPTERS {
        let found = verify(&golden("peft").join(name), None);
        assert_eq!(found.problems, Vec::<String>::new(), "{name}");
        assert!(found.modules.iter().all(|module| module.norm.is_some_and(|norm| norm > 0.0)), "{name}");
        assert_eq!(found.files.len(), 2);
    }
}

#[test]
fn a_module_without_effect_is_named() {
    let target = "model.layers.1.mlp.up_proj";
    let folder = changed(|tensors| {
        let b = tensors.iter_mut().find(|tensor| tensor.name.contains(&format!("{target}.lora_B"))).unwrap();
        b.data.fill(0);
    });
    let found = problems(folder.path());
    assert!(found.contains(target) && found.contains("no effect"), "{found}");
}

#[test]
fn half_a_pair_a_stranger_and_a_broken_number_are_named() {
    let folder = changed(|tensors| tensors.retain(|tensor| !tensor.name.contains("0.mlp.up_proj.lora_B")));
    let found = problems(folder.path());
    assert!(found.contains("lora_B is missing") && found.contains("0.mlp.up_proj"), "{found}");

    let folder = changed(|tensors| tensors[0].name = "model.layers.0.x".into());
    assert!(problems(folder.path()).contains("base_model.model."));

    let folder = changed(|tensors| tensors[0].data[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    assert!(problems(folder.path()).contains("NaN"), "{}", problems(folder.path()));

    let empty = tempfile::tempdir().unwrap();
    assert!(problems(empty.path()).contains("adapter_config.json"));
}

#[test]
fn the_exit_code_and_the_json_say_the_same() {
    let out = tempfile::tempdir().unwrap();
    let run = |folder: &Path, base: &Path| {
        let run = Command::new(env!("CARGO_BIN_EXE_tune"))
            .args(["verify", "--json"])
            .arg(folder)
            .arg("--base")
            .arg(base)
            .output()
            .unwrap();
        let events: Vec<Value> = String::from_utf8(run.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let last = events.last().unwrap();
        assert_eq!(last["exit_code"], run.status.code().unwrap());
        let problems = events.iter().filter(|event| event["event"] == "problem").count();
        let result = events.into_iter().find(|event| event["event"] == "result").unwrap();
        assert_eq!(problems, result["problems"].as_array().unwrap().len());
        (run.status.code().unwrap(), result)
    };
    let base = golden("peft/base");
    let (code, json) = run(&golden("peft/plain_qv"), &base);
    assert_eq!((code, &json["ok"]), (0, &Value::Bool(true)));
    assert_eq!(json["modules"].as_array().unwrap().len(), 4);
    assert_eq!(json["readers"]["as_is"], serde_json::json!(["peft", "mistralrs", "vllm", "llama.cpp"]));

    let adapter = out.path().join("adapter");
    write_adapter(&adapter, &base, 0.1, &[("tune.base_sha256.model.safetensors", "12"), ("tune.seed", "7")]);
    let (code, json) = run(&adapter, &base);
    assert_eq!((code, &json["ok"]), (1, &Value::Bool(false)));
    assert_eq!(json["provenance"]["tune.seed"], "7");
    assert!(json["problems"].to_string().contains("not the base model of the training run"), "{json}");
}
