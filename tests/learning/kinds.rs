//! Other kinds of adapters against PEFT, through the public recipe. See `tests/golden/README.md`.

use std::path::Path;

use serde_json::Value;

use crate::common::{golden, relative_difference, run, series, tensors};
use crate::tensors::{Tensor, read_tensors, write_safetensors};
use crate::trajectory::{largest_difference, numbers, recipe};

/// Largest difference of any loss.
const LOSS_TOLERANCE: f64 = 1e-4;
/// Largest ‖ours − theirs‖ / ‖theirs − start‖ over the tensors of the final adapter.
const CHANGE_TOLERANCE: f64 = 1e-3;

fn settings(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(&format!("kinds/case_{name}.json"))).unwrap()).unwrap()
}

/// The tensors of a file, widened where they are stored in bf16.
fn all_in_f32(path: &Path) -> std::collections::BTreeMap<String, Vec<f32>> {
    let file = tune::assets::SafetensorsFile::open(path).unwrap();
    file.names().map(|name| (name.to_owned(), file.read_floats(name).unwrap())).collect()
}

/// Every eighth row of a matrix of the golden base's width.
fn some_rows(values: &[f32]) -> Vec<f32> {
    values.chunks_exact(96).step_by(8).flatten().copied().collect()
}

/// The adapter of `trajectory/` with the base's own embeddings and head beside it, as PEFT would save it.
fn with_saved_modules(folder: &Path) {
    let mut tensors = read_tensors(&golden("trajectory/adapter/adapter_model.safetensors"));
    for tensor in read_tensors(&golden("trajectory/base/model.safetensors")) {
        if ["model.embed_tokens.weight", "lm_head.weight"].contains(&tensor.name.as_str()) {
            tensors.push(Tensor { name: format!("base_model.model.{}", tensor.name), ..tensor });
        }
    }
    write_safetensors(&folder.join("adapter_model.safetensors"), &tensors);
    let config = golden("trajectory/adapter/adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    config["modules_to_save"] = serde_json::json!(["embed_tokens", "lm_head"]);
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

/// Runs a golden case from the adapter in `start`, and compares losses, gradient norms and the final adapter.
fn follows_the_reference(name: &str, start: &Path, adapter: &str) -> String {
    let settings = settings(name);
    let folder = tempfile::tempdir().unwrap();
    let output_dir = folder.path().join(name);
    let adapter = format!("init_from = {start:?}, {adapter}");
    run(&recipe(&settings, &adapter, "f32", &output_dir));

    let losses = largest_difference(&series(&output_dir, "loss"), &numbers(&settings["losses"]));
    for (ours, theirs) in series(&output_dir, "grad_norm").iter().zip(numbers(&settings["grad_norms"])) {
        assert!((ours / theirs - 1.0).abs() < 1e-3, "{name}: gradient norm {ours} for {theirs}");
    }
    let start = all_in_f32(&start.join("adapter_model.safetensors"));
    let ours = tensors(&output_dir.join("adapter/adapter_model.safetensors"));
    let theirs = tensors(&golden(&format!("kinds/final_adapter_{name}.safetensors")));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    let mut worst = 0.0_f64;
    for (tensor, theirs) in &theirs {
        // Of a whole module the fixture holds some rows.
        let (start, ours) = match tensor.contains("lora_") {
            true => (start[tensor].clone(), ours[tensor].clone()),
            false => (some_rows(&start[tensor]), some_rows(&ours[tensor])),
        };
        let change = |values: &[f32]| -> Vec<f32> { values.iter().zip(&start).map(|(v, s)| v - s).collect() };
        worst = worst.max(relative_difference(&change(&ours), &change(theirs)));
    }
    assert!(losses <= LOSS_TOLERANCE, "{name}: a loss differs by {losses:e}");
    assert!(worst <= CHANGE_TOLERANCE, "{name}: the adapter's change differs by {worst:e}");
    format!("{name}: losses within {losses:.1e}, change of the adapter within {worst:.1e}")
}

#[test]
fn loraplus_follows_the_reference() {
    println!(
        "{}",
        follows_the_reference("loraplus", &golden("trajectory/adapter"), "learning_rate_ratio = 16")
    );
}

#[test]
fn dora_follows_the_reference() {
    println!("{}", follows_the_reference("dora", &golden("kinds/adapter_dora"), "use_dora = true"));
}

#[test]
fn dora_with_loraplus_follows_the_reference() {
    let adapter = "use_dora = true, learning_rate_ratio = 8";
    println!("{}", follows_the_reference("dora_loraplus", &golden("kinds/adapter_dora"), adapter));
}

#[test]
fn whole_modules_follow_the_reference() {
    let start = tempfile::tempdir().unwrap();
    with_saved_modules(start.path());
    let adapter = "learning_rate_ratio = 4, modules_to_save = [\"lm_head\", \"embed_tokens\"]";
    println!("{}", follows_the_reference("wholes", start.path(), adapter));
}

/// One run after another of the same recipe, on different numbers of threads.
#[test]
fn every_kind_gives_the_same_bytes_whatever_the_threads() {
    let settings = settings("wholes");
    let folder = tempfile::tempdir().unwrap();
    let adapter = "use_dora = true, modules_to_save = [\"lm_head\", \"embed_tokens\"]";
    let bytes = [1, 2, 3].map(|threads| {
        let output_dir = folder.path().join(format!("run-{threads}"));
        let recipe = recipe(&settings, adapter, "bf16", &output_dir);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&recipe));
        std::fs::read(output_dir.join("adapter/adapter_model.safetensors")).unwrap()
    });
    assert!(bytes[0] == bytes[1] && bytes[0] == bytes[2], "adapters differ");
}

#[test]
fn what_cannot_be_trained_as_a_whole_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |base: &str, names: &str| {
        let text = recipe(&settings("wholes"), &format!("modules_to_save = [{names}]"), "f32", folder.path());
        let trained = format!("{:?}", golden("trajectory/base"));
        let error =
            crate::common::try_run(&text.replace(&trained, &format!("{:?}", golden(base)))).unwrap_err();
        format!("{error:?}")
    };
    let error = refused("trajectory/base", "\"lm_head\", \"norm\"");
    assert!(error.contains("`norm` cannot be trained in full"), "{error}");
    let error = refused("families/smollm2", "\"lm_head\"");
    assert!(error.contains("ties its output head"), "{error}");
}
