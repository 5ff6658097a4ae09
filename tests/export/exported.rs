//! `tune export`: what other programs would compute from the folders written for them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tune::adapter::peft::Adapter;
use tune::assets::SafetensorsFile;
use tune::export::consumer::{Compatibility, Consumer};
use tune::files::Existing;
use tune::run::adapters::{BaseChoice, export};

use super::support::{
    ADAPTERS, PLAIN, adapted_logits, environment, golden, largest_difference, reference, spec_of,
};

fn exported(name: &str, consumer: Consumer, into: &Path) -> PathBuf {
    let out = into.join(format!("{name}-{}", consumer.word()));
    let base = golden("peft/base");
    // For one of them without the base, which only mlx needs.
    let base = (consumer != Consumer::LlamaCpp).then(|| base.to_str().unwrap().to_owned());
    let choice = BaseChoice { base: base.as_deref(), revision: None };
    export(&golden("peft").join(name), choice, consumer, &out, Existing::Refuse, &environment()).unwrap();
    out
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn peft_folders_compute_what_peft_computed_from_the_original() {
    let out = tempfile::tempdir().unwrap();
    for name in ADAPTERS {
        let (ids, expected) =
            reference(&golden("peft").join(name).join("golden.safetensors"), "input_ids", "logits");
        for consumer in [Consumer::Peft, Consumer::MistralRs, Consumer::Vllm, Consumer::LlamaCpp] {
            if !PLAIN.contains(&name) && consumer != Consumer::Peft {
                continue;
            }
            let folder = exported(name, consumer, out.path());
            let difference =
                largest_difference(&adapted_logits(&golden("peft/base"), &folder, &ids), &expected);
            assert!(difference <= 1e-4, "{name} for {consumer}: logits differ by {difference}");
        }
    }
}

#[test]
fn readers_that_know_one_scaling_find_one() {
    let out = tempfile::tempdir().unwrap();
    for consumer in [Consumer::Vllm, Consumer::LlamaCpp] {
        for name in PLAIN {
            let folder = exported(name, consumer, out.path());
            let config = config(&folder);
            assert_eq!(config["use_rslora"], false);
            assert_eq!(
                (&config["rank_pattern"], &config["alpha_pattern"]),
                (&json!({}), &json!({})),
                "{name}"
            );
            let adapter = Adapter::open(&folder).unwrap();
            let targets = adapter.targets(&spec_of(&golden("peft/base")).modules()).unwrap();
            let rank = config["r"].as_u64().unwrap();
            let scaling = config["lora_alpha"].as_f64().unwrap() / rank as f64;
            for target in &targets {
                assert_eq!((target.rank as u64, target.scaling), (rank, scaling), "{name}");
            }
            assert!(consumer.reads_as_is(adapter.config(), &targets).is_ok());
        }
    }
}

#[test]
fn mlx_multiplies_to_the_same_weights() {
    let out = tempfile::tempdir().unwrap();
    let modules = spec_of(&golden("peft/base")).modules();
    for name in PLAIN {
        let folder = exported(name, Consumer::Mlx, out.path());
        let config = config(&folder);
        assert_eq!((&config["fine_tune_type"], &config["num_layers"]), (&json!("lora"), &json!(2)));
        let parameters = &config["lora_parameters"];
        let (rank, scale) =
            (parameters["rank"].as_u64().unwrap() as usize, parameters["scale"].as_f64().unwrap());
        let file = SafetensorsFile::open(&folder.join("adapters.safetensors")).unwrap();
        // What mlx-lm will look for: the named projections of every layer.
        let keys: Vec<&str> =
            parameters["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
        let mut looked_for = 0;
        let original = Adapter::open(&golden("peft").join(name)).unwrap();
        let targets = original.targets(&modules).unwrap();
        for module in modules.iter().filter(|module| keys.iter().any(|key| module.path.ends_with(key))) {
            looked_for += 2;
            let [a, b] = ["lora_a", "lora_b"].map(|half| format!("{}.{half}", module.path));
            assert_eq!(file.info(&a).unwrap().shape, [module.in_features, rank]);
            assert_eq!(file.info(&b).unwrap().shape, [rank, module.out_features]);
            let (a, b): (Vec<f32>, Vec<f32>) = (file.read_floats(&a).unwrap(), file.read_floats(&b).unwrap());
            let target = targets.iter().find(|target| target.module.path == module.path);
            let values =
                target.map(|target| (target, original.values(std::slice::from_ref(target)).unwrap()));
            for row in 0..module.out_features {
                for column in 0..module.in_features {
                    let found: f64 = (0..rank)
                        .map(|at| {
                            f64::from(a[column * rank + at]) * f64::from(b[at * module.out_features + row])
                        })
                        .sum();
                    let expected: f64 = values.as_ref().map_or(0.0, |(target, values)| {
                        let product = |at: usize| {
                            f64::from(values[0][at * module.in_features + column])
                                * f64::from(values[1][row * target.rank + at])
                        };
                        target.scaling * (0..target.rank).map(product).sum::<f64>()
                    });
                    assert!(
                        (scale * found - expected).abs() <= 1e-6,
                        "{name} {} {row} {column}",
                        module.path
                    );
                }
            }
        }
        assert_eq!(file.names().count(), looked_for, "{name}: left over");
    }
}

#[test]
fn who_reads_what_as_it_is() {
    let modules = spec_of(&golden("peft/base")).modules();
    let of = |name: &str| {
        let adapter = Adapter::open(&golden("peft").join(name)).unwrap();
        let targets = adapter.targets(&modules).unwrap();
        Compatibility::of(adapter.config(), &targets).to_string()
    };
    assert_eq!(
        of("plain_qv"),
        "PEFT, mistral.rs, vLLM, llama.cpp load it unchanged; mlx-lm after `tune export --for mlx` (it has its own layout)"
    );
    let patterns = of("rslora_patterns");
    assert!(patterns.starts_with("PEFT, mistral.rs load it unchanged; vLLM after"), "{patterns}");
    assert_eq!(
        of("dora"),
        "PEFT loads it unchanged; mistral.rs, vLLM, llama.cpp, mlx-lm after `tune merge` (only PEFT supports DoRA)"
    );
    assert!(patterns.contains("rank_pattern") && patterns.contains("rsLoRA"), "{patterns}");
}

#[test]
fn what_cannot_be_carried_over_says_merge_instead() {
    let out = tempfile::tempdir().unwrap();
    let folder = golden("peft/plain_qv");
    let wide = out.path().join("wide");
    fs::create_dir(&wide).unwrap();
    let mut config = config(&folder);
    config["r"] = json!(600);
    config["target_modules"] = json!(["model.layers.0.self_attn.q_proj"]);
    fs::write(wide.join("adapter_config.json"), config.to_string()).unwrap();
    let key = |half: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{half}.weight");
    let tensor = |name: String, shape: [usize; 2]| crate::tensors::Tensor {
        name,
        dtype: "F32",
        shape: shape.to_vec(),
        data: vec![0x3c; shape[0] * shape[1] * 4],
    };
    let tensors = [tensor(key("lora_A"), [600, 32]), tensor(key("lora_B"), [32, 600])];
    crate::tensors::write_safetensors(&wide.join("adapter_model.safetensors"), &tensors);
    let to = out.path().join("no");
    let choice = BaseChoice::default();
    let error =
        export(&wide, choice, Consumer::Vllm, &to, Existing::Refuse, &environment()).unwrap_err().to_string();
    assert!(error.contains("merge it instead") && error.contains("600"), "{error}");
    let error =
        export(&wide, choice, Consumer::Mlx, &to, Existing::Refuse, &environment()).unwrap_err().to_string();
    assert!(error.contains("--base"), "{error}");
    let (dora, wholes) = (golden("peft/dora"), golden("peft/wholes"));
    for consumer in [Consumer::MistralRs, Consumer::Vllm, Consumer::LlamaCpp, Consumer::Mlx] {
        let error =
            export(&dora, choice, consumer, &to, Existing::Refuse, &environment()).unwrap_err().to_string();
        assert!(error.contains("DoRA") && error.contains("merge it instead: `tune merge"), "{error}");
        let error =
            export(&wholes, choice, consumer, &to, Existing::Refuse, &environment()).unwrap_err().to_string();
        assert!(error.contains("modules_to_save") && error.contains("merge it instead"), "{error}");
    }
    assert!(!to.exists());
}
