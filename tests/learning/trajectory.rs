//! Twenty QLoRA steps against transformers + PEFT + torch, through the public recipe. See `tests/golden/README.md`.

use std::path::Path;

use crate::common::{golden, relative_difference, run, series, tensors};
use serde_json::Value;

struct Case {
    name: &'static str,
    /// Largest difference of any of the twenty losses.
    loss_tolerance: f64,
    /// ‖ours − theirs‖ / ‖theirs − start‖ over each tensor of the final adapter.
    change_tolerance: f64,
}

const CASES: [Case; 4] = [
    Case { name: "plain", loss_tolerance: 1e-4, change_tolerance: 1e-3 },
    Case { name: "accumulated", loss_tolerance: 1e-4, change_tolerance: 1e-3 },
    Case { name: "clipped", loss_tolerance: 1e-4, change_tolerance: 2e-2 },
    Case { name: "repeated", loss_tolerance: 2e-4, change_tolerance: 1e-3 },
];

fn settings(name: &str) -> Value {
    let path = golden(&format!("trajectory/case_{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The recipe of a golden case; `adapter` is what `[adapter.lora]` says beside rank and alpha.
pub(crate) fn recipe(case: &Value, adapter: &str, compute_dtype: &str, output_dir: &Path) -> String {
    let path = |name: &str| format!("{:?}", golden(&format!("trajectory/{name}")));
    format!(
        r#"
        version = 1
        output_dir = {output_dir:?}
        model = {{ base = {base}, compute_dtype = "{compute_dtype}" }}
        quantization.nf4 = {{ block_size = 64, double_quant = true }}
        adapter.lora = {{ rank = 8, alpha = 16, {adapter} }}
        data = {{ max_seq_len = 128, shuffle = false, packing = false }}
        dataset = [{{ path = {data}, format = "tokens" }}]
        [train]
        max_steps = {max_steps}
        micro_batch_size = {micro_batch_size}
        gradient_accumulation_steps = {gradient_accumulation_steps}
        learning_rate = {learning_rate}
        lr_scheduler = "constant"
        warmup_steps = 0
        weight_decay = {weight_decay:?}
        max_grad_norm = {max_grad_norm:?}
        "#,
        base = path("base"),
        data = path(case["data"].as_str().unwrap()),
        max_steps = case["max_steps"],
        micro_batch_size = case["micro_batch_size"],
        gradient_accumulation_steps = case["gradient_accumulation_steps"],
        learning_rate = case["learning_rate"],
        weight_decay = case["weight_decay"].as_f64().unwrap(),
        max_grad_norm = case["max_grad_norm"].as_f64().unwrap(),
    )
}

/// Where the plain cases start.
fn init_from() -> String {
    format!("init_from = {:?}", golden("trajectory/adapter"))
}

pub(crate) fn largest_difference(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn losses_norms_and_adapters_follow_the_reference() {
    let start = tensors(&golden("trajectory/adapter/adapter_model.safetensors"));
    for case in CASES {
        let settings = settings(case.name);
        let folder = tempfile::tempdir().unwrap();
        let output_dir = folder.path().join(case.name);
        run(&recipe(&settings, &init_from(), "f32", &output_dir));

        let losses = largest_difference(&series(&output_dir, "loss"), &numbers(&settings["losses"]));
        assert!(losses <= case.loss_tolerance, "{}: a loss differs by {losses:e}", case.name);
        for (ours, theirs) in series(&output_dir, "grad_norm").iter().zip(numbers(&settings["grad_norms"])) {
            assert!((ours / theirs - 1.0).abs() < 1e-3, "{}: gradient norm {ours} for {theirs}", case.name);
        }

        let ours = tensors(&output_dir.join("adapter/adapter_model.safetensors"));
        let theirs = tensors(&golden(&format!("trajectory/final_adapter_{}.safetensors", case.name)));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        let mut worst = 0.0_f64;
        for (name, theirs) in &theirs {
            let change = |values: &[f32]| -> Vec<f32> {
                values.iter().zip(&start[name]).map(|(v, s)| v - s).collect()
            };
            worst = worst.max(relative_difference(&change(&ours[name]), &change(theirs)));
        }
        println!("{}: losses within {losses:.1e}, change of the adapter within {worst:.1e}", case.name);
        assert!(worst <= case.change_tolerance, "{}: the adapter's change differs by {worst:e}", case.name);
    }
}

/// In bf16 every loss of the twenty steps stays within this share of the reference's, which computes in f32.
fn bf16_tolerance(case: &Case) -> f64 {
    match case.name {
        // It learns its rows by heart: what rounding changed early is a larger share of the small losses at the end. Seen
        // on the processor: 1.2 % without bf16 products, 0.6 % with them; 0.2 % at most in the other cases.
        "repeated" => 2e-2,
        _ => 5e-3,
    }
}

#[test]
fn losses_in_bf16_follow_the_reference_in_f32() {
    for case in CASES {
        let settings = settings(case.name);
        let folder = tempfile::tempdir().unwrap();
        let output_dir = folder.path().join(case.name);
        run(&recipe(&settings, &init_from(), "bf16", &output_dir));
        let (ours, theirs) = (series(&output_dir, "loss"), numbers(&settings["losses"]));
        assert_eq!(ours.len(), theirs.len());
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
        println!("{}: losses in bf16 within {:.2} %", case.name, 100.0 * worst);
        assert!(worst <= bf16_tolerance(&case), "{}: a loss differs by {:.2} %", case.name, 100.0 * worst);
    }
}
