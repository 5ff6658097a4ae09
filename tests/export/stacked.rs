//! Adapters of experts: stacked as PEFT stacks them, read from such files, and as each program reads them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tune::adapter::peft::{Adapter, TENSORS_FILE};
use tune::assets::SafetensorsFile;
use tune::export::consumer::Consumer;
use tune::export::verify::verify;
use tune::files::Existing;
use tune::run::adapters::{BaseChoice, export};

use super::support::{adapted_logits, environment, golden, largest_difference, reference, spec_of};
use crate::tensors::{read_tensors, write_safetensors};

/// The bases of the golden adapters.
const CASES: [(&str, &str); 3] = [
    ("qwen3_moe", "mixture_experts/base"),
    ("gpt_oss", "mixtures/gpt_oss"),
    ("gpt_oss_down", "mixtures/gpt_oss"),
];

fn stacked(name: &str) -> PathBuf {
    golden("stacked_adapters").join(name)
}

fn exported(adapter: &Path, base: &Path, consumer: Consumer, out: &Path) -> PathBuf {
    let out = out.join(consumer.word());
    let choice = BaseChoice { base: base.to_str(), revision: None };
    export(adapter, choice, consumer, &out, Existing::Refuse, &environment()).unwrap();
    out
}

fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = SafetensorsFile::open(&folder.join(TENSORS_FILE)).unwrap();
    let tensor = |name: &str| (file.info(name).unwrap().shape.clone(), file.read_floats(name).unwrap());
    file.names().map(|name| (name.to_owned(), tensor(name))).collect()
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn experts_are_stacked_bit_for_bit_as_peft_stacks_them() {
    let out = tempfile::tempdir().unwrap();
    let base = golden("mixture_experts/base");
    let found = exported(&golden("mixture_experts/adapter"), &base, Consumer::Peft, out.path());
    assert_eq!(tensors(&found), tensors(&stacked("qwen3_moe")));
    let config = config(&found);
    assert_eq!(config["target_parameters"], json!(["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]));
    assert_eq!(config["target_modules"], json!(["k_proj", "o_proj", "q_proj", "v_proj"]));
    assert_eq!(config["rank_pattern"], json!({ "mlp.experts.gate_up_proj": 4 }));
    assert_eq!(config["alpha_pattern"], json!({ "mlp.experts.gate_up_proj": 8 }));
}

/// Read from stacks, and from what is written for every program that reads them.
#[test]
fn logits_are_those_of_peft_in_every_form() {
    for (name, base) in CASES {
        let (adapter, base) = (stacked(name), golden(base));
        let (ids, expected) = reference(&adapter.join("logits.safetensors"), "ids", "logits");
        let plain = super::support::logits(&base, &ids);
        assert!(largest_difference(&plain, &expected) > 1e-2, "{name} changes the base");
        let out = tempfile::tempdir().unwrap();
        let forms = [Consumer::Peft, Consumer::Vllm, Consumer::LlamaCpp, Consumer::MistralRs];
        let written = forms.map(|consumer| exported(&adapter, &base, consumer, out.path()));
        for folder in written.iter().chain([&adapter]) {
            let difference = largest_difference(&adapted_logits(&base, folder, &ids), &expected);
            assert!(difference <= 1e-4, "{}: {difference:e}", folder.display());
        }
        for folder in &written {
            let found = verify(folder, None);
            assert_eq!(found.problems, Vec::<String>::new(), "{}", folder.display());
        }
    }
}

#[test]
fn vllm_finds_every_expert_or_stacks_by_family() {
    let out = tempfile::tempdir().unwrap();
    // Two of twelve experts of one layer.
    let some = out.path().join("some");
    fs::create_dir(&some).unwrap();
    let adapter = golden("mixture_experts/adapter");
    let mut own = read_tensors(&adapter.join(TENSORS_FILE));
    own.retain(|tensor| {
        tensor.name.contains("0.mlp.experts.3.gate") || tensor.name.contains("0.mlp.experts.7.")
    });
    write_safetensors(&some.join(TENSORS_FILE), &own);
    let mut fields = config(&adapter);
    fields["target_modules"] = json!([".*layers.0.mlp.experts.(3.gate|7.*)_proj"][0]);
    fs::write(some.join("adapter_config.json"), fields.to_string()).unwrap();
    let base = golden("mixture_experts/base");
    let found = exported(&some, &base, Consumer::Vllm, out.path());
    let names: Vec<String> = tensors(&found).into_keys().collect();
    assert_eq!(names.len(), 12 * 3 * 2, "{names:?}");
    assert!(names.iter().all(|name| name.contains(".layers.0.mlp.experts.")));
    let found = exported(&some, &base, Consumer::Peft, out.path());
    assert_eq!(config(&found)["target_parameters"].as_array().unwrap().len(), 2);
    let ids = [3, 9, 27, 4];
    let [expected, found] = [&some, &found].map(|folder| adapted_logits(&base, folder, &ids));
    assert!(largest_difference(&expected, &found) <= 1e-5);

    let base = golden("mixtures/gpt_oss");
    let out = tempfile::tempdir().unwrap();
    let found = exported(&stacked("gpt_oss"), &base, Consumer::Vllm, out.path());
    assert!(tensors(&found).contains_key("base_model.model.model.layers.1.mlp.experts.lora_B.weight"));
}

#[test]
fn stacks_that_fit_no_experts_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let golden = stacked("gpt_oss");
    let verified = |change: &dyn Fn(&mut Value), tensors: &[&str]| {
        let mut fields = config(&golden);
        change(&mut fields);
        fs::write(folder.path().join("adapter_config.json"), fields.to_string()).unwrap();
        let mut own = read_tensors(&golden.join(TENSORS_FILE));
        own.retain(|tensor| !tensors.iter().any(|name| tensor.name.contains(name)));
        write_safetensors(&folder.path().join(TENSORS_FILE), &own);
        verify(folder.path(), None).problems.join("\n")
    };
    // Whose rows they are is known with the base alone.
    let found = verified(&|_| {}, &[]);
    assert!(found.contains("take turns") && found.contains("--base"), "{found}");
    let adapter = Adapter::open(folder.path()).unwrap();
    let spec = spec_of(&super::support::golden("mixtures/gpt_oss"));
    assert_eq!(adapter.targets(&spec.modules()).unwrap().len(), 2 * (4 * 3 + 1));
    let found = verified(&|fields| fields["r"] = json!(3), &[]);
    assert!(found.contains("rank 3"), "{found}");
    let found = verified(&|_| {}, &["0.mlp.experts.base_layer.lora_B"]);
    assert!(found.contains("gate_up_proj") && found.contains("lora_B is missing"), "{found}");
}
