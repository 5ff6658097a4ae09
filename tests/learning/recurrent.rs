//! Ten steps on models with recurrent layers and short convolutions, dense and in 4 bits, against transformers + PEFT +
//! torch; there every row is computed alone, here two rows are documents of one micro-batch.

use std::path::Path;

use crate::common::{golden, relative_difference, run, series, tensors};
use crate::trajectory::{largest_difference, numbers};
use serde_json::Value;

struct Model {
    name: &'static str,
    targets: &'static [&'static str],
}

const MODELS: [Model; 3] = [
    Model {
        name: "qwen3_5",
        targets: &[
            "in_proj_qkv",
            "in_proj_z",
            "out_proj",
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
    },
    // Beside experts that some tokens pass, the names mean the one that every token passes.
    Model {
        name: "qwen3_5_moe",
        targets: &[
            "in_proj_qkv",
            "in_proj_z",
            "out_proj",
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "shared_expert.gate_proj",
            "shared_expert.up_proj",
            "shared_expert.down_proj",
        ],
    },
    Model { name: "lfm2", targets: &["in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "w1", "w2", "w3"] },
];

fn recipe(model: &Model, case: &Value, quantization: &str, output_dir: &Path) -> String {
    let Model { name: model, targets } = model;
    let path = |name: &str| format!("{:?}", golden(&format!("recurrent/{model}/{name}")));
    format!(
        r#"
        version = 1
        output_dir = {output_dir:?}
        model = {{ base = {base}, compute_dtype = "f32" }}
        {quantization}
        adapter.lora = {{ rank = 4, alpha = 8, init_from = {adapter}, target_modules = {targets:?} }}
        data = {{ max_seq_len = 256, shuffle = false, packing = false }}
        dataset = [{{ path = {data}, format = "tokens" }}]
        [train]
        max_steps = {max_steps}
        micro_batch_size = {micro_batch_size}
        learning_rate = {learning_rate}
        lr_scheduler = "constant"
        warmup_steps = 0
        weight_decay = {weight_decay:?}
        max_grad_norm = {max_grad_norm:?}
        "#,
        base = path("base"),
        adapter = path("adapter"),
        data = path("tokens.jsonl"),
        max_steps = case["max_steps"],
        micro_batch_size = case["micro_batch_size"],
        learning_rate = case["learning_rate"],
        weight_decay = case["weight_decay"].as_f64().unwrap(),
        max_grad_norm = case["max_grad_norm"].as_f64().unwrap(),
    )
}

#[test]
fn recurrent_layers_follow_the_reference() {
    for model in &MODELS {
        let golden = |path: &str| golden(&format!("recurrent/{}/{path}", model.name));
        let start = tensors(&golden("adapter/adapter_model.safetensors"));
        for (kind, quantization) in [("dense", ""), ("nf4", "quantization.nf4 = {}")] {
            let case = std::fs::read(golden(&format!("case_{kind}.json"))).unwrap();
            let case: Value = serde_json::from_slice(&case).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let output_dir = folder.path().join(kind);
            run(&recipe(model, &case, quantization, &output_dir));
            let what = format!("{}, {kind}", model.name);
            let losses = largest_difference(&series(&output_dir, "loss"), &numbers(&case["losses"]));
            assert!(losses <= 1e-4, "{what}: a loss differs by {losses:e}");
            for (ours, theirs) in series(&output_dir, "grad_norm").iter().zip(numbers(&case["grad_norms"])) {
                assert!((ours / theirs - 1.0).abs() < 1e-3, "{what}: gradient norm {ours} for {theirs}");
            }
            println!("{what}: losses within {losses:.1e}");
            if kind == "dense" {
                let ours = tensors(&output_dir.join("adapter/adapter_model.safetensors"));
                let theirs = tensors(&golden("final_adapter.safetensors"));
                assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
                for (name, theirs) in &theirs {
                    let change = |values: &[f32]| -> Vec<f32> {
                        values.iter().zip(&start[name]).map(|(v, s)| v - s).collect()
                    };
                    let worst = relative_difference(&change(&ours[name]), &change(theirs));
                    assert!(worst <= 2e-3, "{what}, {name}: the adapter's change differs by {worst:e}");
                }
            }
        }
    }
}
