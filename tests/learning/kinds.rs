//! Other kinds of adapters against PEFT, through the public recipe. See `tests/golden/README.md`.

use std::path::Path;

use serde_json::Value;

use crate::common::{golden, relative_difference, run, series, tensors};
use crate::trajectory::{largest_difference, numbers, recipe};

/// Largest difference of any loss.
const LOSS_TOLERANCE: f64 = 1e-4;
/// Largest ‖ours − theirs‖ / ‖theirs − start‖ over the tensors of the final adapter.
const CHANGE_TOLERANCE: f64 = 1e-3;

fn settings(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(&format!("kinds/case_{name}.json"))).unwrap()).unwrap()
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
    let start = tensors(&start.join("adapter_model.safetensors"));
    let ours = tensors(&output_dir.join("adapter/adapter_model.safetensors"));
    let theirs = tensors(&golden(&format!("kinds/final_adapter_{name}.safetensors")));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    let mut worst = 0.0_f64;
    for (tensor, theirs) in &theirs {
        let change =
            |values: &[f32]| -> Vec<f32> { values.iter().zip(&start[tensor]).map(|(v, s)| v - s).collect() };
        worst = worst.max(relative_difference(&change(&ours[tensor]), &change(theirs)));
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
